/**
 * One layer, forward and back, on a block of four columns (see network.mjs).
 *
 * Row i of a block stands at 4 i … 4 i + 3. Where the columns are the four streams of one point,
 * they are the value z and its derivatives z_x, z_t and L z = a₀ z_xx + a₁ z_tt.
 */

/** z = W h, and + b in the columns that hold values. */
export function linear(theta, { n, m, W, b }, h, z, streams) {
  for (let j = 0; j < m; j++) {
    let z0 = theta[b + j];
    let z1 = streams ? 0 : z0;
    let z2 = z1;
    let z3 = z1;
    for (let i = 0, k = W + j * n; i < n; i++, k++) {
      const w = theta[k];
      z0 += w * h[4 * i];
      z1 += w * h[4 * i + 1];
      z2 += w * h[4 * i + 2];
      z3 += w * h[4 * i + 3];
    }
    z[4 * j] = z0;
    z[4 * j + 1] = z1;
    z[4 * j + 2] = z2;
    z[4 * j + 3] = z3;
  }
}

/** The way back through a layer: its part of the gradient, and the derivatives by h. */
export function linearBack(theta, { n, m, W, b }, h, bar, before, g, streams) {
  for (let j = 0; j < m; j++) {
    const [b0, b1, b2, b3] = [bar[4 * j], bar[4 * j + 1], bar[4 * j + 2], bar[4 * j + 3]];
    g[b + j] += streams ? b0 : b0 + b1 + b2 + b3;
    for (let i = 0, k = W + j * n; i < n; i++, k++) {
      const w = theta[k];
      g[k] += b0 * h[4 * i] + b1 * h[4 * i + 1] + b2 * h[4 * i + 2] + b3 * h[4 * i + 3];
      before[4 * i] += w * b0;
      before[4 * i + 1] += w * b1;
      before[4 * i + 2] += w * b2;
      before[4 * i + 3] += w * b3;
    }
  }
}

/** h = tanh z in each column. */
export function tanhOfValues(z, h) {
  for (let k = 0; k < z.length; k++) h[k] = Math.tanh(z[k]);
}

/** Derivatives by h become derivatives by z, in place: tanh' = 1 − tanh². */
export function tanhOfValuesBack(h, bar) {
  for (let k = 0; k < h.length; k++) bar[k] *= 1 - h[k] * h[k];
}

/** h = tanh z, h_x = h' z_x, h_t = h' z_t and L h = h' L z + h'' (a₀ z_x² + a₁ z_t²). */
export function tanhOfStreams(z, h, [a0, a1]) {
  for (let k = 0; k < z.length; k += 4) {
    const a = Math.tanh(z[k]);
    const slope = 1 - a * a;
    const square = a0 * z[k + 1] * z[k + 1] + a1 * z[k + 2] * z[k + 2];
    h[k] = a;
    h[k + 1] = slope * z[k + 1];
    h[k + 2] = slope * z[k + 2];
    h[k + 3] = slope * (z[k + 3] - 2 * a * square);
  }
}

/** Derivatives by h become derivatives by z, in place: the chain rule of the four lines above. */
export function tanhOfStreamsBack(z, h, bar, [a0, a1]) {
  for (let k = 0; k < z.length; k += 4) {
    const a = h[k];
    const slope = 1 - a * a;
    const [zx, zt, Lz] = [z[k + 1], z[k + 2], z[k + 3]];
    const [b0, bx, bt, bL] = [bar[k], bar[k + 1], bar[k + 2], bar[k + 3]];
    const square = a0 * zx * zx + a1 * zt * zt;
    const bySlope = zx * bx + zt * bt + Lz * bL;
    bar[k] = slope * (b0 - 2 * a * bySlope - 2 * (1 - 3 * a * a) * square * bL);
    bar[k + 1] = slope * (bx - 4 * a * a0 * zx * bL);
    bar[k + 2] = slope * (bt - 4 * a * a1 * zt * bL);
    bar[k + 3] = slope * bL;
  }
}

/**
 * A tanh perceptron u(x, t; θ), its derivatives with respect to x and t, and the way back to θ.
 *
 * Everything moves in blocks of four columns. A block holds either the values of four points, or
 * the four streams of one point: u, u_x, u_t and the operator a₀ u_xx + a₁ u_tt, which is all that
 * a second-order equation needs. A layer's matrix treats the columns alike; only tanh tells them
 * apart. Carrying derivatives forward through each layer is Taylor-mode differentiation.
 */
import {
  linear,
  linearBack,
  tanhOfStreams,
  tanhOfStreamsBack,
  tanhOfValues,
  tanhOfValuesBack,
} from "./layer.mjs";
import { normal } from "./random.mjs";

export class Network {
  /**
   * @param {number[][]} domain one [low, high] for x and one for t, which are mapped to [-1, 1]
   * @param {number[]} operator the factors a₀ and a₁ of u_xx and u_tt in the fourth stream
   * @param {number[]} sizes neurons of each layer, such as [2, 20, 20, 20, 1]
   * @param {() => number} random draws the weights (Xavier normal); biases start at zero
   */
  constructor(domain, operator, sizes, random) {
    Object.assign(this, { domain, operator });
    this.scale = domain.map(([low, high]) => 2 / (high - low));
    let P = 0;
    this.layers = sizes.slice(1).map((m, l) => {
      const layer = { n: sizes[l], m, W: P, b: P + sizes[l] * m };
      P = layer.b + m;
      return layer;
    });
    this.theta = new Float64Array(P);
    for (const { n, m, W } of this.layers) {
      const deviation = Math.sqrt(2 / (n + m));
      for (let k = W; k < W + n * m; k++) this.theta[k] = deviation * normal(random);
    }
    this.h = sizes.map((n) => new Float64Array(4 * n)); // outputs of the layers, h[0] the input
    this.z = sizes.map((n) => new Float64Array(4 * n)); // what tanh is applied to
    this.bar = sizes.map((n) => new Float64Array(4 * n)); // derivatives of the loss by z
  }

  /** u at four points, x and t in turn: four numbers that the next call overwrites. */
  values(points, start) {
    const h = this.h[0];
    for (let c = 0; c < 4; c++) {
      h[c] = this.normalized(0, points[start + 2 * c]);
      h[4 + c] = this.normalized(1, points[start + 2 * c + 1]);
    }
    return this.forward(false);
  }

  /** u, u_x, u_t and a₀ u_xx + a₁ u_tt at one point, until the next call. */
  streams(points, start) {
    const h = this.h[0].fill(0);
    for (let i = 0; i < 2; i++) {
      h[4 * i] = this.normalized(i, points[start + i]);
      h[4 * i + 1 + i] = this.scale[i];
    }
    return this.forward(true);
  }

  normalized(i, x) {
    return (x - this.domain[i][0]) * this.scale[i] - 1;
  }

  forward(streams) {
    const { h, z, theta, layers } = this;
    layers.forEach((layer, l) => {
      linear(theta, layer, h[l], z[l + 1], streams);
      if (l === layers.length - 1) h[l + 1].set(z[l + 1]);
      else if (streams) tanhOfStreams(z[l + 1], h[l + 1], this.operator);
      else tanhOfValues(z[l + 1], h[l + 1]);
    });
    return h[layers.length];
  }

  /**
   * Add to the row `g` the gradient by θ of what has the derivatives `bar` by the last block.
   * `streams` says of which kind that block was.
   */
  backward(bar, streams, g) {
    const { h, z, theta, layers } = this;
    let last = bar;
    for (let l = layers.length - 1; l >= 0; l--) {
      const before = this.bar[l].fill(0);
      linearBack(theta, layers[l], h[l], last, before, g, streams);
      if (l === 0) break;
      if (streams) tanhOfStreamsBack(z[l], h[l], before, this.operator);
      else tanhOfValuesBack(h[l], before);
      last = before;
    }
  }
}

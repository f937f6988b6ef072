/** Both losses of a batch, and their gradients: the rows of the matrix G. */

/**
 * Mean squares of the residuals, data and equation, unweighted.
 *
 * @param {Float64Array[]} G two rows, which are overwritten with ∂L_data/∂θ and ∂L_pde/∂θ
 * @returns {number[]} [L_data, L_pde]
 */
export function measure(problem, network, batch, G) {
  const losses = [0, 0];
  for (const row of G) row.fill(0);
  const bar = new Float64Array(4);

  const count = batch.boundary.length / 2;
  for (let k = 0; k < batch.boundary.length; k += 8) {
    const u = network.values(batch.boundary, k);
    for (let c = 0; c < 4; c++) {
      const r = u[c] - problem.exact(batch.boundary[k + 2 * c], batch.boundary[k + 2 * c + 1]);
      losses[0] += r ** 2 / count;
      bar[c] = (2 * r) / count;
    }
    network.backward(bar, false, G[0]);
  }
  eachPoint(batch.initial, (x, t, n, k) => {
    const [u, , ut] = network.streams(batch.initial, k);
    const r = u - problem.exact(x, t);
    losses[0] += (r ** 2 + ut ** 2) / n;
    bar.set([(2 * r) / n, 0, (2 * ut) / n, 0]);
    network.backward(bar, true, G[0]);
  });
  eachPoint(batch.pde, (x, t, n, k) => {
    const [u, , , operator] = network.streams(batch.pde, k);
    const r = operator + problem.reaction(u) - problem.source(x, t);
    losses[1] += r ** 2 / n;
    bar.set([(2 * r * problem.reactionSlope(u)) / n, 0, 0, (2 * r) / n]);
    network.backward(bar, true, G[1]);
  });
  return losses;
}

function eachPoint(points = [], visit) {
  for (let k = 0; k < points.length; k += 2) visit(points[k], points[k + 1], points.length / 2, k);
}

/** Values on a regular grid: the picture of a solution, and how far a prediction is from it. */

export const GRID = 48; // along each variable, a multiple of 4

/** The points of the grid in turn: along the first variable, row by row from below. */
export function gridPoints([[low0, high0], [low1, high1]]) {
  const at = (low, high, i) => low + ((high - low) * i) / (GRID - 1);
  const points = new Float64Array(2 * GRID * GRID);
  for (let k = 0; k < GRID * GRID; k++) {
    points[2 * k] = at(low0, high0, k % GRID);
    points[2 * k + 1] = at(low1, high1, Math.floor(k / GRID));
  }
  return points;
}

export function exactField({ domain, exact }) {
  const points = gridPoints(domain);
  return Float32Array.from({ length: GRID * GRID }, (_, k) =>
    exact(points[2 * k], points[2 * k + 1]),
  );
}

export function predictedField(network, points) {
  const field = new Float32Array(GRID * GRID);
  for (let k = 0; k < field.length; k += 4) field.set(network.values(points, 2 * k), k);
  return field;
}

/** ‖u_θ − u‖ / ‖u‖ in the L2 norm. */
export function relativeError(predicted, exact) {
  const norm = (values) => Math.hypot(...values);
  return norm(predicted.map((u, k) => u - exact[k])) / norm(exact);
}

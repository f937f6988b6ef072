/** The weight λ of the PDE loss: held, or following a ratio of the gradients' sizes. */

/** S, the size of a gradient: the mean of its absolute values. */
export const meanAbs = (row) => row.reduce((sum, g) => sum + Math.abs(g), 0) / row.length;

/** The target λ̂ of each rule, from the sizes of the gradients of both losses and λ in force. */
export const rules = {
  constant: (_sizes, lambda) => lambda,
  plain: () => 1,
  simplified: ([data, pde]) => data / pde,
  root: ([data, pde], lambda) => data / (lambda * pde), // rests where λ² is the ratio
};

/** λ ← (1 − α) λ + α λ̂: α weighs the new value. Without a gradient there is no ratio: λ̂ = 1. */
export function follow(rule, alpha, sizes, lambda) {
  const target = sizes[1] > 0 ? rule(sizes, lambda) : 1;
  return (1 - alpha) * lambda + alpha * target;
}

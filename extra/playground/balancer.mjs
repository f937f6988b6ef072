/** The weight λ of the PDE loss: held, or following a ratio of the gradients' sizes. */

/** S, the size of a gradient: the mean of its absolute values. */
export const meanAbs = (row) => row.reduce((sum, g) => sum + Math.abs(g), 0) / row.length;

/** The ratio of the size of the data's gradient to another: 1 where that one is zero. */
const over = (data, other) => (other > 0 ? data / other : 1);

/** The target λ̂ of each rule, from the sizes of the gradients of both losses and λ in force. */
export const rules = {
  constant: (_sizes, lambda) => lambda,
  plain: () => 1,
  simplified: ([data, pde]) => over(data, pde),
  root: ([data, pde], lambda) => over(data, lambda * pde), // rests where λ² is the ratio
};

/** λ ← (1 − α) λ + α λ̂: α weighs the new value. */
export const follow = (rule, alpha, sizes, lambda) =>
  (1 - alpha) * lambda + alpha * rule(sizes, lambda);

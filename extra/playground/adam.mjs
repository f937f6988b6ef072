/** Adam (Kingma and Ba), with its usual constants. */
export class Adam {
  constructor(theta, rate) {
    Object.assign(this, { theta, rate, steps: 0 });
    this.mean = new Float64Array(theta.length);
    this.square = new Float64Array(theta.length);
  }

  /** Move θ against the gradient g. */
  step(g) {
    this.steps += 1;
    const rate = this.rate / (1 - 0.9 ** this.steps);
    const root = Math.sqrt(1 - 0.999 ** this.steps);
    for (let k = 0; k < g.length; k++) {
      this.mean[k] += 0.1 * (g[k] - this.mean[k]);
      this.square[k] += 0.001 * (g[k] * g[k] - this.square[k]);
      this.theta[k] -= (rate * this.mean[k]) / (Math.sqrt(this.square[k]) / root + 1e-8);
    }
  }
}

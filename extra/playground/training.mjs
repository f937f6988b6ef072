/** One training: draw points, measure both gradients, weigh, step. */
import { Adam } from "./adam.mjs";
import { follow, meanAbs, rules } from "./balancer.mjs";
import { exactField, gridPoints, predictedField, relativeError } from "./field.mjs";
import { measure } from "./losses.mjs";
import { Network } from "./network.mjs";
import { problems } from "./problems.mjs";
import { uniform } from "./random.mjs";

const SIZES = [2, 32, 32, 1];
const RATE = 0.01;
const POINTS = 32;

export class Training {
  /** Settings are those of settings.mjs. */
  constructor(settings) {
    this.problem = problems[settings.problem];
    this.random = uniform(settings.seed);
    this.network = new Network(this.problem.domain, this.problem.operator, SIZES, this.random);
    this.adam = new Adam(this.network.theta, RATE);
    const row = () => new Float64Array(this.network.theta.length);
    this.G = [row(), row()];
    this.g = row();
    this.steps = 0;
    this.lambda = 1;
    this.losses = [NaN, NaN]; // not yet measured, like the next
    this.sizes = [NaN, NaN];
    this.grid = gridPoints(this.problem.domain);
    this.exact = exactField(this.problem);
    this.weigh(settings);
  }

  /** Take another rule, another α, or another constant λ. */
  weigh({ rule, alpha, lambda }) {
    this.rule = rules[rule];
    this.alpha = alpha;
    if (rule === "constant") this.lambda = lambda;
  }

  /** One step, on new points unless they are given. */
  step(batch = this.problem.sample(this.random, POINTS)) {
    const [data, pde] = this.G;
    this.losses = measure(this.problem, this.network, batch, this.G);
    this.sizes = this.G.map(meanAbs);
    this.lambda = follow(this.rule, this.alpha, this.sizes, this.lambda);
    for (let k = 0; k < this.g.length; k++) this.g[k] = data[k] + this.lambda * pde[k];
    this.adam.step(this.g);
    this.steps += 1;
    if (!Number.isFinite(this.losses[0] + this.lambda * this.losses[1]))
      throw new Error(`The loss is not finite at step ${this.steps}.`);
  }

  /** What there is to see now. */
  picture() {
    const { steps, lambda, losses, sizes } = this;
    const field = predictedField(this.network, this.grid);
    return { steps, lambda, losses, sizes, field, error: relativeError(field, this.exact) };
  }
}

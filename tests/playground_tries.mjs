/**
 * The three tries of the page for each of the seeds that stand on the command line, as JSON:
 * errors, λ, and how many times the gradient of the PDE loss is the larger one.
 */
import { Training } from "../extra/playground/training.mjs";

function advance(training, steps) {
  for (let step = 0; step < steps; step++) training.step();
  const { error, lambda, sizes } = training.picture();
  return { error, lambda, ratio: sizes[1] / sizes[0] };
}

const tries = process.argv
  .slice(2)
  .map(Number)
  .map((seed) => {
    const plain = new Training({ problem: "klein-gordon", rule: "plain", alpha: 0.9, seed });
    const balanced = new Training({
      problem: "klein-gordon",
      rule: "simplified",
      alpha: 0.9,
      seed,
    });
    const collapse = new Training({ problem: "helmholtz", rule: "simplified", alpha: 0.1, seed });
    const root = new Training({ problem: "helmholtz", rule: "root", alpha: 0.1, seed });
    const result = {
      plain: advance(plain, 600),
      balanced: advance(balanced, 900),
      collapse: advance(collapse, 900),
      root: advance(root, 2000),
    };
    balanced.weigh({ rule: "constant", alpha: 0.9, lambda: 1 });
    return { ...result, back: advance(balanced, 100) };
  });
console.log(JSON.stringify(tries));

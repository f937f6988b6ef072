/**
 * Train the playground's network from given weights on given points, for test_playground.py.
 *
 * Reads from the standard input {settings, theta, batches}, writes what each step measured.
 */
import { readFileSync } from "node:fs";
import { Training } from "../extra/playground/training.mjs";

const { settings, theta, batches } = JSON.parse(readFileSync(0, "utf8"));
const training = new Training(settings);
training.network.theta.set(theta);
const before = training.picture();
const steps = batches.map((sets) => {
  const batch = Object.fromEntries(
    Object.entries(sets).map(([name, points]) => [name, Float64Array.from(points.flat())]),
  );
  training.step(batch);
  const { losses, sizes, lambda, G, network } = training;
  return { losses, sizes, lambda, G: G.map((row) => [...row]), theta: [...network.theta] };
});
const { field, error } = before;
console.log(JSON.stringify({ field: [...field], error, exact: [...training.exact], steps }));

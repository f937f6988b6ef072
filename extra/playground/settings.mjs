/** What the reader chose, and the link that holds it. */
import { rules } from "./balancer.mjs";
import { problems } from "./problems.mjs";

export const defaults = { problem: "klein-gordon", rule: "plain", lambda: 1, alpha: 0.9, seed: 1 };

const between = (low, high) => (value) => value >= low && value <= high;
const oneOf = (table) => (value) => Object.hasOwn(table, value);
const seeds = between(0, 2 ** 32 - 1);
const allowed = {
  problem: [oneOf(problems), Object.keys(problems).join(" or ")],
  rule: [oneOf(rules), Object.keys(rules).join(", ")],
  lambda: [between(1e-6, 1e3), "a number from 1e-6 to 1e3"],
  alpha: [between(0.01, 1), "a number from 0.01 to 1"],
  seed: [(value) => Number.isInteger(value) && seeds(value), "a whole number from 0 to 4294967295"],
};

/** Settings from the end of a link, such as "#rule=simplified&seed=2", and what was refused. */
export function parse(hash) {
  const settings = { ...defaults };
  const refused = [];
  for (const [name, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (!Object.hasOwn(allowed, name)) {
      if (text) refused.push(`${name}=${text} in the link: there is no such setting`);
      continue; // without a value it is a heading of the page
    }
    const value = typeof defaults[name] === "number" ? Number(text || NaN) : text;
    const [valid, expected] = allowed[name];
    if (valid(value)) settings[name] = value;
    else refused.push(`${name}=${text} in the link: ${expected} is needed`);
  }
  return { settings, refused };
}

export const format = (settings) => `#${new URLSearchParams(settings)}`;

/** Trains beside the page, so that the page never waits: orders come in, pictures go out. */
import { Training } from "./training.mjs";

const PICTURE_MS = 40;
const STEPS_A_PICTURE = 12; // 300 a second: slow enough to watch, where the device is fast
const STEPS_AT_A_STRETCH = 6000; // then it rests, so that a forgotten tab does not

let training;
let id; // of the training: pictures of the one before may still be under way
let timer;
let restAt;

/** An order holds settings, and any of: reset (a new id), running, steps. */
self.onmessage = ({ data: { settings, reset, running, steps } }) => {
  if (reset) {
    id = reset;
    training = new Training(settings);
  }
  training.weigh(settings);
  if (running !== undefined) {
    clearTimeout(timer);
    restAt = training.steps + STEPS_AT_A_STRETCH;
    if (running) timer = setTimeout(run);
  }
  if (steps) advance(steps, Number.POSITIVE_INFINITY);
};

function run() {
  const start = performance.now();
  const goesOn = advance(STEPS_A_PICTURE, start + PICTURE_MS);
  if (goesOn) timer = setTimeout(run, PICTURE_MS - (performance.now() - start));
}

/** Take so many steps, or as many as time allows; send the picture; may it go on? */
function advance(steps, until) {
  const end = training.steps + steps;
  let trouble;
  try {
    while (training.steps < end && performance.now() < until) training.step();
  } catch (error) {
    trouble = error.message;
  }
  const rested = training.steps >= restAt;
  self.postMessage({ id, trouble, rested, ...training.picture() });
  return !trouble && !rested;
}

/** The page: controls give orders to the worker, its pictures are drawn and read out. */
import { format, parse } from "./settings.mjs";
import { Training } from "./training.mjs";
import { drawCharts, drawMaps, root, short, show, showLambda, showNumbers } from "./view.mjs";

const form = root.querySelector("form");
const controls = form.elements;
const status = root.querySelector("[role=status]");

const code = ["model", "worker"].map((id) => document.getElementById(`playground-${id}`).text);
const worker = new Worker(URL.createObjectURL(new Blob(code, { type: "text/javascript" })));

let settings;
let running = !matchMedia("(prefers-reduced-motion: reduce)").matches;
let id = 0;
let limit; // of the colours
let pictures; // of this training, so far
let field; // of the last of them
let due = false;

/** Nobody watches a hidden page: it waits, and goes on where it was. */
const active = () => running && !document.hidden;

/** Say what happened, in the one place that screen readers follow. */
function say(what) {
  const { steps, error, lambda } = pictures.at(-1);
  const now = `Step ${steps}: relative error ${short(error)}, λ = ${short(lambda)}.`;
  status.textContent = steps ? `${what} ${now}` : what;
}

function setRunning(on) {
  running = on;
  controls.run.textContent = on ? "Pause" : "Train";
}

/** Begin anew. The first picture is made here, for the worker takes its time to start. */
function restart(what) {
  const training = new Training(settings);
  const { domain, variables } = training.problem;
  show("axes", `${variables[0]} across, ${variables[1]} up, from ${domain[0].join(" to ")}`);
  limit = Math.max(...training.exact.map(Math.abs));
  pictures = [];
  id += 1;
  add(training.picture());
  drawMaps(limit, field, training.exact);
  showNumbers(pictures, running);
  performance.mark("first picture");
  redrawSoon();
  worker.postMessage({ settings, reset: id, running: active() });
  say(what);
}

function add({ field: predicted, ...picture }) {
  field = predicted;
  pictures.push({ ...picture, time: performance.now() });
}

/** Take over settings, and let the controls show them. */
function set(next) {
  settings = next;
  for (const name of ["problem", "rule", "alpha", "seed"]) controls[name].value = settings[name];
  show("alpha", `= ${settings.alpha}`);
  if (settings.rule === "constant") showLambda(settings.lambda);
}

function setFromLink(link) {
  const { settings: next, refused } = parse(link);
  set(next);
  setRunning(running);
  restart(refused.join(". ") || (running ? "Training." : "Train starts the training."));
}

worker.onmessage = ({ data: picture }) => {
  if (picture.id !== id) return;
  add(picture);
  if (picture.trouble || (picture.rested && running)) {
    setRunning(false);
    say(
      picture.trouble
        ? `${picture.trouble} Reset it, then train with another weight.`
        : "It rests now.",
    );
  }
  redrawSoon();
};

function redrawSoon() {
  if (!due) requestAnimationFrame(redraw);
  due = true;
}

function redraw() {
  due = false;
  drawMaps(limit, field);
  drawCharts(pictures);
  showNumbers(pictures, running);
}

form.addEventListener("input", ({ target }) => {
  if (!form.checkValidity()) return form.reportValidity();
  const value = target.type === "radio" ? target.value : Number(target.value);
  if (target.name === "lambda") set({ ...settings, rule: "constant", lambda: 10 ** value });
  else if (target.value === "constant")
    set({ ...settings, rule: "constant", lambda: pictures.at(-1).lambda });
  else set({ ...settings, [target.name]: value });
  if (["problem", "seed"].includes(target.name)) restart("Started anew.");
  else worker.postMessage({ settings });
});

form.addEventListener("click", async ({ target: { name, value } }) => {
  if (name === "run") {
    setRunning(!running);
    worker.postMessage({ settings, running });
    say(running ? "Training." : "Paused.");
  } else if (name === "step") {
    setRunning(false);
    worker.postMessage({ settings, running, steps: 1 });
  } else if (name === "reset") {
    restart("Reset.");
  } else if (name === "try") {
    setRunning(true);
    setFromLink(value);
  } else if (name === "share") {
    history.replaceState(null, "", format(settings));
    const copied = await navigator.clipboard?.writeText(location.href).then(
      () => true,
      () => false,
    );
    status.textContent = copied ? "The link is copied." : `The link: ${location.href}`;
  }
});

form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("resize", redraw);
addEventListener("hashchange", () => location.hash.includes("=") && setFromLink(location.hash));
document.addEventListener("visibilitychange", () =>
  worker.postMessage({ settings, running: active() }),
);
new MutationObserver(redraw).observe(document.documentElement, {
  attributeFilter: ["data-theme"],
});

setFromLink(location.hash);

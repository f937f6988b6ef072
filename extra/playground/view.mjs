/** What the page shows of a training: maps, charts, numbers. */
import { drawChart, drawMap } from "./drawing.mjs";

const template = document.getElementById("playground-page"); // not shown without this script
performance.mark("script");
template.replaceWith(template.content);

export const root = document.getElementById("playground-app");
const maps = root.querySelectorAll(".map");
const charts = root.querySelectorAll(".chart");
const slider = root.querySelector("[name=lambda]");

/** The lines of each chart: a colour of the style sheet, what is drawn, and whether dashed. */
const LINES = {
  error: [["line", (p) => p.error]],
  lambda: [["line", (p) => p.lambda]],
  losses: [
    ["data", (p) => p.losses[0]],
    ["pde", (p) => p.losses[1]],
  ],
  sizes: [
    ["data", (p) => p.sizes[0]],
    ["pde", (p) => p.sizes[1]],
    ["pde", (p) => p.lambda * p.sizes[1], true],
  ],
};

export const short = (value) =>
  value >= 0.01 && value < 1000 ? value.toPrecision(2) : value.toExponential(1);

export function show(name, text) {
  root.querySelector(`[data-value=${name}]`).textContent = text;
}

export function showLambda(lambda) {
  slider.value = Math.log10(lambda);
  slider.setAttribute("aria-valuetext", short(lambda));
  show("lambda", `= ${short(lambda)}`);
}

/** Draw a prediction, and beside it the exact solution where that is another than before. */
export function drawMaps(limit, predicted, exact) {
  drawMap(maps[0], predicted, limit);
  if (exact) drawMap(maps[1], exact, limit);
}

/** Draw the course of a training. Unlike the rest, this has to wait for the layout of the page. */
export function drawCharts(pictures) {
  const style = getComputedStyle(root);
  const color = (name) => style.getPropertyValue(`--${name}`);
  const steps = pictures.map((p) => p.steps);
  for (const canvas of charts) {
    const lines = LINES[canvas.dataset.chart].map(([name, value, dashed]) => ({
      color: color(name),
      values: pictures.map(value),
      dashed,
    }));
    drawChart(canvas, steps, lines, { line: color("line"), grid: color("grid") });
  }
}

export function showNumbers(pictures, running) {
  const now = pictures.at(-1);
  show("error", short(now.error));
  show("steps", `step ${now.steps}`);
  show("rate", running ? `${rate(pictures)} steps a second` : "at rest");
  showLambda(now.lambda);
}

/** Steps a second, over the last second. */
function rate(pictures) {
  const last = pictures.at(-1);
  const before = pictures.find((p) => p.time > last.time - 1000);
  return Math.round((1000 * (last.steps - before.steps)) / (last.time - before.time) || 0);
}

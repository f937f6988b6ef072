/** What the reader sees: maps of a field and charts over steps, on canvases. */
import { GRID } from "./field.mjs";

const [BLUE, WHITE, RED] = [
  [33, 102, 172],
  [247, 247, 247],
  [178, 24, 43],
];

/** Draw a field from blue at −limit to red at +limit; what lies beyond has the end colours. */
export function drawMap(canvas, field, limit) {
  if (canvas.width !== GRID) canvas.width = canvas.height = GRID;
  const context = canvas.getContext("2d");
  const image = context.createImageData(GRID, GRID);
  field.forEach((u, k) => {
    const share = Math.max(-1, Math.min(1, u / limit));
    const end = share < 0 ? BLUE : RED;
    const row = GRID - 1 - Math.floor(k / GRID); // the canvas counts from above
    const at = 4 * (row * GRID + (k % GRID));
    WHITE.forEach((white, c) => {
      image.data[at + c] = white + (end[c] - white) * Math.abs(share);
    });
    image.data[at + 3] = 255;
  });
  context.putImageData(image, 0, 0);
}

/**
 * Draw lines over steps on a logarithmic axis.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {number[]} steps
 * @param {{color: string, values: number[], dashed?: boolean}[]} lines
 * @param {{line: string, grid: string}} colors of letters and rules
 */
export function drawChart(canvas, steps, lines, colors) {
  const context = canvas.getContext("2d");
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  context.scale(ratio, ratio);
  context.font = "12px sans-serif";

  const logs = lines.map(({ values }) => values.map(Math.log10));
  const shown = logs.flat().filter(Number.isFinite);
  const low = Math.floor(Math.min(0, ...shown));
  const high = Math.max(low + 2, Math.ceil(Math.max(0, ...shown)));
  const last = Math.max(300, steps.at(-1) ?? 0);
  const [left, right, top, bottom] = [38, width - 6, 8, height - 20];
  const x = (step) => left + ((right - left) * step) / last;
  const y = (log) => bottom - ((bottom - top) * (log - low)) / (high - low);

  context.fillStyle = colors.line;
  context.strokeStyle = colors.grid;
  context.textBaseline = "middle";
  const every = Math.ceil((high - low) / 4);
  for (let log = low; log <= high; log += every) {
    context.strokeRect(left, y(log), right - left, 0);
    context.textAlign = "right";
    context.fillText(log === 0 ? "1" : `1e${log}`, left - 4, y(log));
  }
  context.fillText(`${last}`, right, height - 8);
  context.textAlign = "left";
  context.fillText("0", left, height - 8);

  lines.forEach(({ color, dashed }, i) => {
    context.strokeStyle = color;
    context.setLineDash(dashed ? [4, 4] : []);
    context.lineWidth = 1.6;
    context.beginPath();
    steps.forEach((step, k) => {
      context.lineTo(x(step), y(logs[i][k]));
    });
    context.stroke();
  });
}

/** The equations of the playground: those of chapters 1 and 5, with slower oscillations. */

const { PI, cos, sin } = Math;
const OMEGA = 3.5 * PI;
const A = 3;

/** u_tt − u_xx + u³ = f for u = x cos(ωt) + (xt)³ on [0, 1]², with u and u_t given at t = 0. */
const kleinGordon = {
  variables: ["x", "t"],
  domain: [
    [0, 1],
    [0, 1],
  ],
  operator: [-1, 1],
  exact: (x, t) => x * cos(OMEGA * t) + (x * t) ** 3,
  source: (x, t) =>
    -(OMEGA ** 2) * x * cos(OMEGA * t) +
    6 * x ** 3 * t -
    6 * x * t ** 3 +
    kleinGordon.exact(x, t) ** 3,
  reaction: (u) => u ** 3,
  reactionSlope: (u) => 3 * u ** 2,
  sample: (random, n) => ({
    boundary: draw(n, (k) => [k % 2, random()]),
    initial: draw(n, () => [random(), 0]),
    pde: draw(n, () => [random(), random()]),
  }),
};

/** u_xx + u_yy + u = q for u = sin(πx) sin(aπy) on [−1, 1]², with u = 0 on the boundary. */
const helmholtz = {
  variables: ["x", "y"],
  domain: [
    [-1, 1],
    [-1, 1],
  ],
  operator: [1, 1],
  exact: (x, y) => sin(PI * x) * sin(A * PI * y),
  source: (x, y) => (1 - PI ** 2 * (1 + A ** 2)) * helmholtz.exact(x, y),
  reaction: (u) => u,
  reactionSlope: () => 1,
  sample(random, n) {
    const inside = () => 2 * random() - 1;
    const edge = (k) => [2 * (k % 2) - 1, inside()];
    return {
      boundary: draw(n, (k) => (k % 4 < 2 ? edge(k) : edge(k).reverse())),
      pde: draw(n, () => [inside(), inside()]),
    };
  },
};

export const problems = { "klein-gordon": kleinGordon, helmholtz };

/** n points, the numbers of each in turn. */
function draw(n, point) {
  return Float64Array.from(Array.from({ length: n }, (_, k) => point(k)).flat());
}

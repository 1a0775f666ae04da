// Order, sides and scores of a blind test; no DOM, so that they can be tested without a browser.

// The order of pairs and which of them have their sides exchanged, drawn from a 32-bit seed.
function drawOrder(numPairs, seed) {
  let state = seed >>> 0;
  const random = () => {
    // A Weyl sequence, mixed by a 32-bit finaliser; in [0, 1).
    state = (state + 0x9e3779b9) >>> 0;
    let x = state;
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    return ((x ^ (x >>> 16)) >>> 0) / 2 ** 32;
  };
  const order = Array.from({ length: numPairs }, (_, pair) => ({ pair, swapped: random() < 0.5 }));
  for (let k = numPairs - 1; k > 0; k--) {
    const other = Math.floor(random() * (k + 1));
    [order[k], order[other]] = [order[other], order[k]];
  }
  return order;
}

// Bradley-Terry maximum likelihood on the Elo scale, with 95 % intervals by Fisher information.
// votes: a list of {first, second, result}, numbers of codecs; result is 1 where the first won, 0
// where the second did, 1/2 for a tie. The scores have the mean 1500. Where somebody or a group
// won or lost all against the others, the maximum is at infinity: then every two that met are
// given one imagined tie. Returns {reason} or {imagined, scores}: a list of {codec, elo, half, won, lost, tied}.
function eloScores(numCodecs, votes) {
  const zeros = () => Array.from({ length: numCodecs }, () => Array(numCodecs).fill(0));
  const all = zeros();
  const tied = Array(numCodecs).fill(0);
  for (const { first, second, result } of votes) {
    all[first][second] += result;
    all[second][first] += 1 - result;
    if (result === 0.5) [first, second].forEach((codec) => tied[codec]++);
  }
  const met = [...Array(numCodecs).keys()].filter((i) => all.some((row, j) => row[i] + all[i][j]));
  if (met.length < 2) return { reason: "There is no choice yet." };
  const wins = met.map((i) => met.map((j) => all[i][j]));
  const reaches = (edge) => {
    const seen = new Set([0]);
    for (const i of seen) met.forEach((_, j) => edge(i, j) && seen.add(j));
    return seen.size === met.length;
  };
  if (!reaches((i, j) => wins[i][j] + wins[j][i])) {
    return { reason: "Not all codecs were compared with each other, not even by way of a third." };
  }
  const imagined = !(reaches((i, j) => wins[i][j]) && reaches((i, j) => wins[j][i]));
  const games = wins.map((row, i) => row.map((w, j) => w + wins[j][i]));
  if (imagined) {
    games.forEach((row, i) => row.forEach((n, j) => n && (wins[i][j] += 0.5) && (row[j] += 1)));
  }
  const m = met.length;
  let theta = Array(m).fill(0);
  let covariance;
  let longest;
  for (let round = 0; round < 500; round++) {
    const p = (i, j) => 1 / (1 + Math.exp(theta[j] - theta[i]));
    const gradient = wins.map((row, i) => row.reduce((g, w, j) => g + w - games[i][j] * p(i, j), 0));
    const fisher = games.map((row, i) => row.map((n, j) => -n * p(i, j) * p(j, i)));
    fisher.forEach((row, i) => (row[i] = -row.reduce((sum, value, j) => sum + (j === i ? 0 : value), 0)));
    // Scores are known but for their mean: the inverse is that among vectors of sum 0.
    covariance = inverse(fisher.map((row) => row.map((value) => value + 1 / m)))
      .map((row) => row.map((value) => value - 1 / m));
    const step = covariance.map((row) => row.reduce((sum, value, j) => sum + value * gradient[j], 0));
    longest = Math.max(...step.map(Math.abs));
    theta = theta.map((value, i) => value + step[i] / Math.max(1, longest));
    if (longest < 1e-12) break;
  }
  // Rounding may keep steps above 1e-12; 1e-6 is 0.0002 on the scale of Elo. Not finite: false.
  if (!(longest < 1e-6)) return { reason: "The scores could not be computed: their search came to no end." };
  const unit = 400 / Math.LN10;
  const scores = met.map((codec, i) => {
    const won = all[codec].reduce((sum, value) => sum + value, 0) - tied[codec] / 2;
    const lost = all.reduce((sum, row) => sum + row[codec], 0) - tied[codec] / 2;
    const half = 1.96 * unit * Math.sqrt(covariance[i][i]);
    return { codec, elo: 1500 + unit * theta[i], half, won, lost, tied: tied[codec] };
  });
  return { imagined, scores: scores.sort((a, b) => b.elo - a.elo) };
}

// Gauss-Jordan, with the largest pivot.
function inverse(matrix) {
  const n = matrix.length;
  const rows = matrix.map((row, i) => [...row, ...row.map((_, j) => Number(i === j))]);
  for (let k = 0; k < n; k++) {
    let best = k;
    for (let i = k; i < n; i++) if (Math.abs(rows[i][k]) > Math.abs(rows[best][k])) best = i;
    [rows[k], rows[best]] = [rows[best], rows[k]];
    rows[k] = rows[k].map((value) => value / rows[k][k]);
    for (let i = 0; i < n; i++) {
      if (i !== k) rows[i] = rows[i].map((value, j) => value - rows[i][k] * rows[k][j]);
    }
  }
  return rows.map((row) => row.slice(n));
}

const survey = JSON.parse(document.getElementById("survey").textContent);
const element = (id) => document.getElementById(id);
const place = "survey-" + survey.id;
// Only read at the end.
const key = () => JSON.parse(new TextDecoder().decode(
  Uint8Array.from(atob(survey.key), (letter) => letter.charCodeAt(0))));

function newState() {
  const [seed, name, more] = crypto.getRandomValues(new Uint32Array(3));
  const participant = name.toString(16) + more.toString(16);
  return { participant, seed, choices: [], finished: false, flicker: innerWidth < 768 };
}

function load() {
  try {
    return JSON.parse(localStorage.getItem(place)) || newState();
  } catch {
    return newState();
  }
}

function keep() {
  try {
    localStorage.setItem(place, JSON.stringify(state));
  } catch {
    element("unkept").hidden = false;
  }
}

let state = load();
let order = drawOrder(survey.pairs.length, state.seed);
let others = [];
let since = 0;

function open(name) {
  for (const section of ["start", "test", "end"]) element(section).hidden = section !== name;
}

function show() {
  if (state.finished || state.choices.length >= order.length) return finish();
  const { pair, swapped } = order[state.choices.length];
  const { first, second, original } = survey.pairs[pair];
  const coded = swapped ? [second, first] : [first, second];
  const views = element("views");
  views.classList.remove("held");
  views.dataset.shown = "a";
  [...views.children].forEach((figure, side) => {
    figure.querySelector(".coded").src = survey.pictures[coded[side]];
    figure.querySelector(".original").src = survey.pictures[original];
  });
  element("place").textContent = `${state.choices.length + 1} of ${order.length}`;
  element("back").disabled = state.choices.length === 0;
  since = performance.now();
  label();
  open("test");
}

function label() {
  const views = element("views");
  views.classList.toggle("flicker", state.flicker);
  element("flip").hidden = !state.flicker;
  element("mode").textContent = state.flicker ? "Side by side" : "In one place";
  const held = views.classList.contains("held");
  [...views.children].forEach((figure, side) => {
    figure.querySelector("figcaption").textContent = held ? "Original" : "AB"[side];
  });
}

function hold(held) {
  element("views").classList.toggle("held", held);
  label();
}

function flip() {
  const views = element("views");
  if (state.flicker) views.dataset.shown = views.dataset.shown === "a" ? "b" : "a";
}

function changeMode() {
  state.flicker = !state.flicker;
  keep();
  label();
}

function choose(choice) {
  state.choices.push({
    choice,
    mode: state.flicker ? "flicker" : "side by side",
    seconds: Math.round((performance.now() - since) / 100) / 10,
    time: new Date().toISOString(),
  });
  keep();
  show();
}

function back() {
  if (state.choices.length === 0) return;
  state.choices.pop();
  keep();
  show();
}

// The choices with all that was hidden.
function rows() {
  const { codecs, pairs } = key();
  return state.choices.map(({ choice, mode, seconds, time }, position) => {
    const { pair, swapped } = order[position];
    const { image, codecs: own, settings, bpp } = pairs[pair];
    const [a, b] = swapped ? [1, 0] : [0, 1];
    const side = (k) => ({ codec: codecs[own[k]], setting: settings[k], bpp: bpp[k] });
    const closer = choice === "tie" ? "" : side(choice === "a" ? a : b).codec;
    return { position: position + 1, pair, image, a: side(a), b: side(b), choice, closer, mode, seconds, time };
  });
}

function exported() {
  const { participant, seed } = state;
  const screen = `${innerWidth}x${innerHeight} at ${devicePixelRatio}`;
  return { survey: survey.id, participant, seed, screen, choices: rows() };
}

function finish() {
  state.finished = true;
  keep();
  const { codecs } = key();
  const everyone = [exported(), ...others];
  const choices = everyone.flatMap((one) => one.choices);
  const votes = choices.map(({ a, b, choice }) => ({
    first: codecs.indexOf(a.codec),
    second: codecs.indexOf(b.codec),
    result: { a: 1, tie: 0.5, b: 0 }[choice],
  }));
  const people = everyone.filter((one) => one.choices.length).length;
  element("votes").textContent = `${votes.length} choices of ${people} ${people === 1 ? "person" : "people"}`;
  const { reason, imagined, scores } = eloScores(codecs.length, votes);
  const box = element("scores");
  box.replaceChildren();
  if (reason) {
    box.append(Object.assign(document.createElement("p"), { textContent: reason }));
  } else {
    const table = document.createElement("table");
    const line = (cells, tag) => {
      const row = table.insertRow();
      for (const textContent of cells) row.append(Object.assign(document.createElement(tag), { textContent }));
    };
    line(["codec", "Elo", "95 %", "won", "lost", "ties"], "th");
    for (const { codec, elo, half, won, lost, tied } of scores) {
      const range = `${Math.round(elo - half)} to ${Math.round(elo + half)}`;
      line([codecs[codec], Math.round(elo), range, won, lost, tied], "td");
    }
    box.append(table);
    if (imagined) {
      const textContent = "Somebody won or lost everything, which no finite score explains: one imagined tie was added for every two codecs that met. More choices make this needless.";
      box.append(Object.assign(document.createElement("p"), { textContent }));
    }
  }
  open("end");
}

function save(text, kind) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = `choices-${state.participant}.${kind === "text/csv" ? "csv" : "json"}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function toCsv({ survey, participant, screen, choices }) {
  const flat = choices.map(({ a, b, position, pair, image, ...rest }) => ({
    survey, participant, screen, position, pair, image,
    a_codec: a.codec, a_setting: a.setting, a_bpp: a.bpp,
    b_codec: b.codec, b_setting: b.setting, b_bpp: b.bpp, ...rest,
  }));
  const quoted = (value) => `"${String(value).replaceAll('"', '""')}"`;
  return [Object.keys(flat[0] || {}), ...flat.map(Object.values)]
    .map((cells) => cells.map(quoted).join(",") + "\r\n").join("");
}

async function add(files) {
  const { codecs } = key();
  const whole = ({ a, b, choice }) =>
    codecs.includes(a?.codec) && codecs.includes(b?.codec) && ["a", "b", "tie"].includes(choice);
  const problems = [];
  for (const file of files) {
    let found = null;
    try {
      found = JSON.parse(await file.text());
    } catch {
      // Told below.
    }
    const known = [state, ...others].map((one) => one.participant);
    if (!found || found.survey !== survey.id || !Array.isArray(found.choices)) {
      problems.push(`${file.name}: no choices of this test`);
    } else if (!found.choices.every(whole)) {
      problems.push(`${file.name}: choices that this test cannot have`);
    } else if (known.includes(found.participant)) {
      problems.push(`${file.name}: these choices are counted already`);
    } else {
      others.push(found);
    }
  }
  finish();
  element("problem").textContent = problems.join("; ");
  element("problem").hidden = problems.length === 0;
}

function restart() {
  if (!confirm("Forget the choices made in this browser?")) return;
  state = newState();
  order = drawOrder(survey.pairs.length, state.seed);
  others = [];
  keep();
  open("start");
}

function stop() {
  if (confirm("End here? The names are shown, and choices can no longer be changed.")) finish();
}

for (const count of document.querySelectorAll(".count")) count.textContent = order.length;
for (const button of document.querySelectorAll("[data-choice]")) {
  button.onclick = () => choose(button.dataset.choice);
}
element("begin").onclick = show;
element("mode").onclick = changeMode;
element("back").onclick = back;
element("stop").onclick = stop;
element("flip").onclick = flip;
element("views").onclick = flip;
element("json").onclick = () => save(JSON.stringify(exported(), null, 1), "application/json");
element("csv").onclick = () => save(toCsv(exported()), "text/csv");
element("others").onchange = (event) => add([...event.target.files]);
element("again").onclick = restart;
element("original").onpointerdown = () => hold(true);
for (const event of ["pointerup", "pointerleave", "pointercancel"]) {
  element("original").addEventListener(event, () => hold(false));
}
element("original").oncontextmenu = (event) => event.preventDefault();

// Without this, Space after a click would press that button again: a choice that nobody made.
element("test").addEventListener("click", () => document.activeElement.blur());

const keys = {
  ArrowLeft: () => choose("a"), a: () => choose("a"),
  ArrowRight: () => choose("b"), b: () => choose("b"),
  ArrowDown: () => choose("tie"), 0: () => choose("tie"),
  o: () => hold(true), f: changeMode, " ": flip, Backspace: back,
};
addEventListener("keydown", (event) => {
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (element("test").hidden || event.ctrlKey || event.metaKey || event.altKey || !keys[name]) return;
  // A button in focus is pressed by Space, in some browsers whatever is done here.
  if (name === " " && event.target.closest("button")) return;
  event.preventDefault();
  if (!event.repeat) keys[name]();
});
addEventListener("keyup", (event) => {
  if (event.key.toLowerCase() === "o") hold(false);
});
addEventListener("blur", () => hold(false));

keep();
if (state.finished || state.choices.length) show();

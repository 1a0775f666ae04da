document.documentElement.classList.add("js");
const visible = (shot) => !shot.hidden && !shot.closest(".group").hidden;

function start(card) {
  const stage = card.querySelector(".stage");
  const slide = card.querySelector(".slide");
  const shots = [...card.querySelectorAll(".shots figure")];
  const groups = [...card.querySelectorAll(".group[data-rate]")];
  const sides = { left: stage.querySelector("img"), right: stage.querySelectorAll("img")[1] };
  const names = { left: stage.querySelector("b.l"), right: stage.querySelector("b.r") };
  const chosen = {};
  const cut = (percent) => stage.style.setProperty("--cut", percent + "%");
  const put = (side, shot) => {
    chosen[side] = shot;
    shots.forEach((other) => other.classList.toggle(side, other === shot));
    sides[side].src = shot.querySelector("img").src;
    sides[side].alt = names[side].textContent = shot.querySelector("strong").textContent;
  };
  for (const shot of shots) {
    shot.querySelector("button.l").onclick = () => put("left", shot);
    shot.querySelector("button.r").onclick = () => put("right", shot);
  }
  slide.oninput = () => cut(slide.value);
  stage.onpointermove = (event) => {
    const box = stage.getBoundingClientRect();
    const percent = Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width));
    slide.value = percent;
    cut(percent);
  };
  // After a choice of rate: an image with fewer rates shows its highest.
  return (rate) => {
    const own = Math.min(Number(rate), groups.length - 1);
    groups.forEach((group, k) => (group.hidden = rate !== "" && k !== own));
    if (!chosen.left || !visible(chosen.left)) put("left", shots[0]);
    if (!chosen.right || !visible(chosen.right)) {
      put("right", shots.slice(1).find(visible) || shots[0]);
    }
  };
}

const filters = document.querySelector(".filters");
const cards = [...document.querySelectorAll(".card")].map(start);
function filter() {
  const form = new FormData(filters);
  const codecs = form.getAll("codec");
  const known = [...filters.querySelectorAll("[name=codec]")].map((input) => input.value);
  const off = (name) => known.includes(name) && !codecs.includes(name);
  for (const element of document.querySelectorAll("[data-codec]")) {
    element.toggleAttribute("hidden", off(element.dataset.codec));
  }
  for (const row of document.querySelectorAll("tr:has(> td:first-child[data-codec])")) {
    row.hidden = row.firstElementChild.hidden;
  }
  cards.forEach((choose) => choose(form.get("rate") || ""));
}
filters.onchange = filter;
filter();

const parts = [...document.querySelectorAll(".part")];
if (matchMedia("(max-width: 48rem)").matches) parts.forEach((part) => (part.open = false));
for (const link of document.querySelectorAll("nav a")) {
  link.onclick = () => {
    const part = document.querySelector(link.hash + " .part");
    if (part) part.open = true;
  };
}

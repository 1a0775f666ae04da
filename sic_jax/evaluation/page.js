document.documentElement.classList.add("js");
for (const card of document.querySelectorAll(".card")) {
  const stage = card.querySelector(".stage");
  const slide = card.querySelector(".slide");
  const shots = [...card.querySelectorAll(".shots figure")];
  const sides = { left: stage.querySelector("img"), right: stage.querySelectorAll("img")[1] };
  const names = { left: stage.querySelector("b.l"), right: stage.querySelector("b.r") };
  const cut = (percent) => stage.style.setProperty("--cut", percent + "%");
  const put = (side, shot) => {
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
  put("left", shots[0]);
  put("right", shots[Math.min(1 + Number(card.dataset.right), shots.length - 1)]);
}

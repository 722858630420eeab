// A moving picture of one head's store: tokens come one by one, and take the slot that is worth least.
(() => {
  const SLOTS = 12, SINKS = 2, RECENT = 3, TOKENS = 40, PAUSE = 900;
  const SIDE = 64, GAP = 10, WIDTH = 6 * (SIDE + GAP) + GAP, SVG = "http://www.w3.org/2000/svg";

  // A score for each position: fixed, so that the picture is the same each time.
  const score = (position) => {
    const x = Math.sin(position * 127.1 + 11.7) * 43758.5453;
    return Math.round((x - Math.floor(x)) * 90 + 10);
  };
  const make = (name, attributes, text) => {
    const node = document.createElementNS(SVG, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  // The slot to write to: an empty one, else the lowest score of those that are neither sinks nor recent.
  const slotFor = (slots, token) => {
    const empty = slots.indexOf(null);
    if (empty >= 0) return empty;
    const free = slots.map((position, slot) => ({ position, slot }))
      .filter(({ position }) => position >= SINKS && position < token - RECENT + 1);
    return free.reduce((a, b) => (score(a.position) <= score(b.position) ? a : b)).slot;
  };

  const start = (home) => {
    let slots = Array(SLOTS).fill(null), token = 0, timer = null;
    const drawing = make("svg", { viewBox: `0 0 ${WIDTH} ${2 * (SIDE + GAP) + GAP}`, role: "img",
      "aria-label": "Twelve slots of a store, filled and overwritten token by token" });
    const controls = document.createElement("div");
    controls.className = "controls";
    const told = document.createElement("div");
    told.className = "told";
    told.setAttribute("aria-live", "polite");
    const button = (name, act) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = name;
      made.addEventListener("click", act);
      controls.append(made);
      return made;
    };

    const draw = (written, next) => {
      drawing.replaceChildren();
      slots.forEach((position, slot) => {
        const x = GAP + (slot % 6) * (SIDE + GAP), y = GAP + Math.floor(slot / 6) * (SIDE + GAP);
        const kinds = ["slot"];
        if (position !== null && position < SINKS) kinds.push("sink");
        else if (position !== null && position >= token - RECENT) kinds.push("recent");
        if (slot === written) kinds.push("new");
        if (slot === next && position !== null) kinds.push("worst");
        drawing.append(make("rect", { x, y, width: SIDE, height: SIDE, rx: 6, class: kinds.join(" ") }));
        if (position === null) return;
        drawing.append(make("text", { x: x + SIDE / 2, y: y + 28, "text-anchor": "middle", "font-size": 18 }, position));
        drawing.append(make("rect", { x: x + 8, y: y + 44, height: 8, rx: 2, class: "bar",
          width: (SIDE - 16) * score(position) / 100 }));
      });
    };
    const step = () => {
      if (token >= TOKENS) return reset();
      const slot = slotFor(slots, token), gone = slots[slot];
      slots[slot] = token;
      const what = gone === null ? `Token ${token} takes an empty slot.`
        : `Token ${token} takes the slot of token ${gone}, which had the lowest score, ${score(gone)}.`;
      token += 1;
      draw(slot, slots.includes(null) ? -1 : slotFor(slots, token));
      told.textContent = `${what} ${token} tokens seen, ${slots.filter((p) => p !== null).length} kept.`;
    };
    const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
    const reset = () => {
      slots = Array(SLOTS).fill(null);
      token = 0;
      draw(-1, -1);
      told.textContent = "Purple: first tokens. Blue: newest tokens. Dashed: overwritten next.";
    };
    const play = button("Play", () => {
      if (timer) return stop();
      step();
      timer = setInterval(step, PAUSE);
      play.textContent = "Pause";
    });
    button("Step", () => { stop(); step(); });
    button("Again", () => { stop(); reset(); });
    controls.append(told);
    home.replaceChildren(drawing, controls);
    reset();
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play.click();
  };
  const home = document.getElementById("slots");
  if (home) start(home);
})();

// Updates the live page that tune/live.py serves: fetches the status above the report (#strip) every two seconds, and
// the report when it has changed. Scroll positions, zoom, hidden groups and the order of the table are kept.
const column = document.querySelector("main"), strip = document.getElementById("strip");
let version = strip.dataset.version, displayed = "";

async function ask(what) {
  const answer = await fetch(what, {cache: "no-store"});
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function update(made) {
  highlight(null);
  const sorted = document.querySelector("#front th[aria-sort]");
  const order = sorted && [sorted.textContent, sorted.getAttribute("aria-sort") === "ascending"];
  const moved = [...document.querySelectorAll(".scroll")].map(box => box.scrollLeft);
  const fresh = document.createElement("div");
  fresh.innerHTML = made.main;
  for (const plot of plots) fresh.querySelector(`#${plot.id}`)?.replaceWith(plot);
  const chosen = document.getElementById("network");  // the reader may be looking at a network
  if (chosen && !chosen.classList.contains("empty")) fresh.querySelector("#network")?.replaceWith(chosen);
  column.replaceChildren(strip, ...fresh.childNodes);
  data = made.data;
  draw(made.figures);
  bind();
  const head = order && [...document.querySelectorAll("#front th")].find(th => th.textContent === order[0]);
  if (head) sortBy(head, order[1]);
  document.querySelectorAll(".scroll").forEach((box, i) => { box.scrollLeft = moved[i] || 0; });
}

async function follow() {
  const begun = performance.now();
  try {
    const now = await ask("version");
    if (displayed !== now.strip) strip.innerHTML = displayed = now.strip;
    if (now.version !== version) {
      if (typeof Plotly === "undefined") return location.reload();  // the page has no plots yet
      update(await ask("report.json"));
      version = now.version;
    }
  } catch (error) {
    displayed = error instanceof TypeError ? "the server does not answer: this page may be out of date" : error.message;
    strip.replaceChildren(Object.assign(document.createElement("p"), {className: "warning", textContent: displayed}));
  }
  const took = performance.now() - begun;
  setTimeout(follow, Math.min(15000, Math.max(2000, 2 * took)));  // less often if the answers take long
}
setTimeout(follow, 2000);

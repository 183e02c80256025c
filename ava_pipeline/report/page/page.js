"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isTouched = matchMedia("(pointer: coarse)").matches;
  // No button that sends anything; plots over batches have larger ones of their own.
  const ownBar = ["zoom2d", "pan2d", "toImage"];
  const wholeBar = ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"];
  const configOf = (figure) => ({
    responsive: true,
    displaylogo: false,
    displayModeBar: isTouched ? false : "hover",
    modeBarButtons: [figure.hasAttribute("data-by-batch") ? ownBar : wholeBar],
  });
  const plotOf = (figure) => figure.querySelector(".plot");
  const plotsByBatch = () => [...document.querySelectorAll("figure[data-by-batch] .plot")].filter((plot) => plot.layout);

  // Colours are the page's, so that a plot is light or dark with it.
  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const [ink, muted, line, soft, paper] = ["--ink", "--muted", "--line", "--soft", "--paper"].map((name) => style.getPropertyValue(name).trim());
    const found = { ...layout, shapes: layout.shapes?.map(asPressed), font: { ...layout.font, color: ink }, hoverlabel: { bgcolor: soft, bordercolor: line, font: { color: ink } } };
    found.modebar = { bgcolor: paper, color: muted, activecolor: ink };
    if (isTouched) found.dragmode = false; // a finger scrolls the page; the buttons zoom
    const axes = new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))]);
    for (const axis of axes) found[axis] = { automargin: true, ...layout[axis], gridcolor: line, zerolinecolor: line, linecolor: line };
    found.xaxis.unifiedhovertitle = { text: `${layout.xaxis?.title?.text ?? ""} %{x}` };
    return found;
  }

  // Legends: a button hides a run or a column in every plot that has it, and shows it again.
  const hidden = new Set();
  const asPressed = (one) => ({ ...one, visible: !hidden.has(one.legendgroup ?? one.name) });

  function press(part) {
    for (const button of part.querySelectorAll("button[data-key]")) button.setAttribute("aria-pressed", !hidden.has(button.dataset.key));
  }

  function toggle(key) {
    if (!hidden.delete(key)) hidden.add(key);
    press(document);
    for (const plot of document.querySelectorAll(".plot")) {
      if (!plot.data?.some((trace) => trace.legendgroup === key)) continue;
      Plotly.react(plot, plot.data.map(asPressed), { ...plot.layout, shapes: plot.layout.shapes?.map(asPressed) }, configOf(plot.closest("figure")));
    }
  }

  const specOf = (figure) => JSON.parse(figure.querySelector('script[type="application/json"]').textContent);

  function draw(figure) {
    const { data, layout } = specOf(figure);
    const plot = plotOf(figure);
    Plotly.newPlot(plot, data.map(asPressed), themed(layout), configOf(figure));
    if (figure.hasAttribute("data-by-batch")) plot.on("plotly_relayout", (change) => follow(plot, change));
  }

  // One zoom for all plots over batches.
  let isFollowing = false;
  async function follow(plot, change) {
    if (isFollowing || !Object.keys(change).some((key) => key.startsWith("xaxis."))) return;
    isFollowing = true;
    const x = plot.layout.xaxis;
    const same = x.autorange ? { "xaxis.autorange": true } : { "xaxis.range": [...x.range] };
    await Promise.all(plotsByBatch().filter((other) => other !== plot).map((other) => Plotly.relayout(other, same)));
    isFollowing = false;
  }

  function zoom(plot, how) {
    const [first, last] = plot.layout.xaxis.range;
    const width = last - first;
    const ranges = {
      in: [first + width / 4, last - width / 4],
      out: [first - width / 2, last + width / 2],
      back: [first - width / 2, last - width / 2],
      on: [first + width / 2, last + width / 2],
    };
    return Plotly.relayout(plot, how === "all" ? { "xaxis.autorange": true } : { "xaxis.range": ranges[how] });
  }

  async function show(link) {
    const figure = document.querySelector(link.hash);
    const [first, last] = [Number(link.dataset.first), Number(link.dataset.last)];
    const around = Math.max(10, last - first);
    history.replaceState(null, "", link.hash);
    figure.scrollIntoView();
    figure.focus({ preventScroll: true });
    await Plotly.relayout(plotOf(figure), { "xaxis.range": [first - around, last + around] });
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-zoom]");
    if (button) zoom(plotOf(button.closest("figure")), button.dataset.zoom);
    const key = event.target.closest("button[data-key]");
    if (key) toggle(key.dataset.key);
    const link = event.target.closest("a[data-first]");
    if (link && document.querySelector(link.hash)) {
      event.preventDefault();
      show(link);
    }
  });

  const drawAll = (part) => part.querySelectorAll("figure").forEach(draw);
  drawAll(document);
  dark.addEventListener("change", () => {
    for (const plot of document.querySelectorAll(".plot")) Plotly.relayout(plot, themed(plot.layout));
  });

  if (document.body.hasAttribute("data-live")) live();

  // What is new takes the place of what is there; plots keep their zoom, tables that are open stay open.
  function renew(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const main = document.querySelector("main");
    const order = [...fresh.querySelectorAll("section")];
    for (const old of main.querySelectorAll("section")) if (!order.some((section) => section.id === old.id)) old.remove();
    order.forEach((section, place) => {
      const old = document.getElementById(section.id);
      if (old) renewSection(old, section);
      else {
        main.insertBefore(section, main.children[place] ?? null);
        drawAll(section);
      }
    });
  }

  const names = (section) => [...section.querySelectorAll("figure")].map((figure) => figure.id).join();

  function renewSection(old, section) {
    if (names(old) !== names(section) || !names(section)) {
      const open = [...old.querySelectorAll("details[open]")].map((one) => one.id);
      if (section.innerHTML === (sources.get(section.id) ?? old.innerHTML)) return;
      sources.set(section.id, section.innerHTML);
      old.replaceChildren(...section.childNodes);
      for (const one of old.querySelectorAll("details")) one.open = open.includes(one.id);
      drawAll(old);
      return;
    }
    for (const figure of section.querySelectorAll("figure")) renewFigure(document.getElementById(figure.id), figure);
  }
  const sources = new Map();

  function renewFigure(old, figure) {
    const plot = plotOf(old);
    const { data, layout } = specOf(figure);
    plot.style.height = plotOf(figure).style.height;
    Plotly.react(plot, data.map(asPressed), themed(layout), configOf(old)); // its uirevision keeps the zoom
    plot.setAttribute("aria-label", plotOf(figure).getAttribute("aria-label"));
    press(figure);
    for (const part of ["h3", ".legend", "figcaption", "details table"]) old.querySelector(part)?.replaceChildren(...(figure.querySelector(part)?.childNodes ?? []));
  }

  function live() {
    const told = document.getElementById("live");
    let tag = null;
    const tell = (text) => { if (told.textContent !== text) told.textContent = text; };
    async function ask() {
      try {
        const answer = await fetch("contents", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
        if (answer.status === 200) {
          tag = answer.headers.get("ETag");
          renew(await answer.text());
        }
        tell(answer.ok || answer.status === 304 ? "Live: new rows appear by themselves." : "The run cannot be read just now; this is what was last seen.");
      } catch (error) {
        tell("The server of this page has ended; this is what was last seen.");
      }
      setTimeout(ask, 2000);
    }
    ask();
  }
})();

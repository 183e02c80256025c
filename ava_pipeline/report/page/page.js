"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isTouchScreen = matchMedia("(pointer: coarse)").matches;
  // No button that sends anything elsewhere; plots over batches have zoom buttons of their own.
  const ownBar = ["zoom2d", "pan2d", "toImage"];
  const wholeBar = ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"];
  const configOf = (figure) => ({
    responsive: true,
    displaylogo: false,
    displayModeBar: isTouchScreen ? false : "hover",
    modeBarButtons: [figure.hasAttribute("data-by-batch") ? ownBar : wholeBar],
  });
  const plotOf = (figure) => figure.querySelector(".plot");
  const plotsByBatch = () => [...document.querySelectorAll("figure[data-by-batch] .plot")].filter((plot) => plot.layout);

  // The colours of the page, so that plots follow its light or dark scheme.
  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const [ink, muted, line, soft, paper] = ["--ink", "--muted", "--line", "--soft", "--paper"].map((name) => style.getPropertyValue(name).trim());
    const result = { ...layout, shapes: layout.shapes?.map(withVisibility), font: { ...layout.font, color: ink }, hoverlabel: { bgcolor: soft, bordercolor: line, font: { color: ink } } };
    result.modebar = { bgcolor: paper, color: muted, activecolor: ink };
    if (isTouchScreen) result.dragmode = false; // a finger scrolls the page; the buttons zoom
    const axes = new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))]);
    for (const axis of axes) result[axis] = { automargin: true, ...layout[axis], gridcolor: line, zerolinecolor: line, linecolor: line };
    result.xaxis.unifiedhovertitle = { text: `${layout.xaxis?.title?.text ?? ""} %{x}` };
    return result;
  }

  // Legends: a button hides a run or a column in every plot, and shows it again.
  const hidden = new Set();
  const withVisibility = (item) => ({ ...item, visible: !hidden.has(item.legendgroup ?? item.name) });

  function updateButtons(part) {
    for (const button of part.querySelectorAll("button[data-key]")) button.setAttribute("aria-pressed", !hidden.has(button.dataset.key));
  }

  function toggle(key) {
    if (!hidden.delete(key)) hidden.add(key);
    updateButtons(document);
    for (const plot of document.querySelectorAll(".plot")) {
      if (!plot.data?.some((trace) => trace.legendgroup === key)) continue;
      Plotly.react(plot, plot.data.map(withVisibility), { ...plot.layout, shapes: plot.layout.shapes?.map(withVisibility) }, configOf(plot.closest("figure")));
    }
  }

  const specOf = (figure) => JSON.parse(figure.querySelector('script[type="application/json"]').textContent);

  function draw(figure) {
    const { data, layout } = specOf(figure);
    const plot = plotOf(figure);
    Plotly.newPlot(plot, data.map(withVisibility), themed(layout), configOf(figure));
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
      forward: [first + width / 2, last + width / 2],
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

  // Replaces the contents of the page; plots keep their zoom, and open tables stay open.
  function renew(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const main = document.querySelector("main");
    const order = [...fresh.querySelectorAll("section")];
    for (const old of main.querySelectorAll("section")) if (!order.some((section) => section.id === old.id)) old.remove();
    order.forEach((section, index) => {
      const old = document.getElementById(section.id);
      if (old) renewSection(old, section);
      else {
        main.insertBefore(section, main.children[index] ?? null);
        drawAll(section);
      }
    });
  }

  const names = (section) => [...section.querySelectorAll("figure")].map((figure) => figure.id).join();

  function renewSection(old, section) {
    if (names(old) !== names(section) || !names(section)) {
      const open = [...old.querySelectorAll("details[open]")].map((details) => details.id);
      if (section.innerHTML === (sources.get(section.id) ?? old.innerHTML)) return;
      sources.set(section.id, section.innerHTML);
      old.replaceChildren(...section.childNodes);
      for (const details of old.querySelectorAll("details")) details.open = open.includes(details.id);
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
    Plotly.react(plot, data.map(withVisibility), themed(layout), configOf(old)); // its uirevision keeps the zoom
    plot.setAttribute("aria-label", plotOf(figure).getAttribute("aria-label"));
    updateButtons(figure);
    for (const part of ["h3", ".legend", "figcaption", "details table"]) old.querySelector(part)?.replaceChildren(...(figure.querySelector(part)?.childNodes ?? []));
  }

  function live() {
    const note = document.getElementById("live");
    let tag = null;
    const show = (text) => { if (note.textContent !== text) note.textContent = text; };
    async function ask() {
      try {
        const answer = await fetch("contents", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
        if (answer.status === 200) {
          tag = answer.headers.get("ETag");
          renew(await answer.text());
        }
        show(answer.ok || answer.status === 304 ? "Live: new rows appear automatically." : "The run cannot be read at present; the page shows its last state.");
      } catch (error) {
        show("The server of this page has stopped; the page shows the last state of the run.");
      }
      setTimeout(ask, 2000);
    }
    ask();
  }
})();

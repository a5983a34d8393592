"use strict";
// Draws the charts of the page from the JSON beside it, in the colours of the page's theme.
(() => {
  const root = document.documentElement;
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const coarse = matchMedia("(pointer: coarse)").matches;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  let chosen = null;
  try { chosen = localStorage.getItem("hyperlapse-theme"); } catch { /* a page without storage follows the system */ }

  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const faded = (name, alpha) => {
    const value = parseInt(colour(name).slice(1), 16);
    return `rgba(${value >> 16}, ${(value >> 8) & 255}, ${value & 255}, ${alpha})`;
  };

  function setTheme() {
    const now = chosen || (dark.matches ? "dark" : "light");
    root.dataset.theme = now;
    button.textContent = now === "dark" ? "Light theme" : "Dark theme";
  }
  setTheme();

  function traces(view) {
    return view.series.map((series) => {
      const shared = { name: series.name, x: series.x || view.x, y: series.y, showlegend: false, hovertemplate: series.hover };
      if (view.kind === "bars") {
        return { ...shared, type: "bar", width: view.width, marker: { color: colour(series.colour), line: { width: 0 } } };
      }
      if (series.dots) {
        return { ...shared, type: "scatter", mode: "markers", marker: { size: 3.5, color: faded(series.colour, 0.55) } };
      }
      return {
        ...shared, type: "scatter", mode: "lines", connectgaps: false,
        line: { color: colour(series.colour), width: series.thin ? 1.3 : 2, shape: series.shape || "linear", dash: series.dash || "solid" },
        fill: series.fill ? "tozeroy" : "none", fillcolor: faded(series.colour, 0.16),
      };
    });
  }

  function layout(view) {
    const axis = {
      color: colour("soft"), gridcolor: colour("line"), zeroline: false, fixedrange: coarse, automargin: true,
      tickfont: { size: 12 }, title: { font: { size: 12 }, standoff: 8 },
    };
    const marks = view.marks || [];
    return {
      margin: { l: 8, r: 12, t: marks.length ? 24 : 8, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: colour("ink"), size: 12 },
      hovermode: "x unified", dragmode: coarse ? false : "zoom", bargap: 0.08, barmode: view.stacked ? "stack" : "overlay",
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12 } },
      xaxis: { ...axis, showgrid: false, title: { ...axis.title, text: view.xtitle }, range: view.xrange, ticksuffix: "", hoverformat: view.xhover, tickformat: ",.6~g" },
      yaxis: { ...axis, title: { ...axis.title, text: view.ytitle }, rangemode: "tozero", range: view.yrange, tickformat: view.yformat || ",.6~g", dtick: view.dtick || undefined, nticks: 6 },
      shapes: marks.map((mark) => ({
        type: "line", x0: mark.x, x1: mark.x, yref: "paper", y0: 0, y1: 1, line: { color: colour("soft"), width: 1, dash: "dot" },
      })),
      annotations: marks.map((mark) => ({
        x: mark.x, yref: "paper", y: 1, yanchor: "bottom", xanchor: mark.anchor || "center", showarrow: false, text: mark.label, font: { size: 11, color: colour("soft") },
      })),
    };
  }

  function draw() {
    const picked = document.querySelector("input[name=view]:checked");
    return Promise.all(Object.entries(charts).map(([id, chart]) => {
      const view = chart.views ? chart.views[picked ? picked.value : Object.keys(chart.views)[0]] : chart;
      return window.Plotly.react(id, traces(view), layout(view), { displayModeBar: false, responsive: true });
    }));
  }

  async function unpack() {
    const packed = document.getElementById("plotting").textContent.trim();
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  button.addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("hyperlapse-theme", chosen); } catch { /* the choice lasts as long as the page */ }
    setTheme();
    draw();
  });
  unpack().then(draw).then(() => {
    root.dataset.drawn = "yes";
    dark.addEventListener("change", () => { setTheme(); draw(); });
    for (const input of document.querySelectorAll("input[name=view]")) input.addEventListener("change", draw);
  }).catch((error) => {
    root.dataset.drawn = "no";
    for (const id of Object.keys(charts)) document.getElementById(id).textContent = `No chart: ${error.message}. The page needs a browser of 2023 or later.`;
    throw error;
  });
})();

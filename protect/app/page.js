// What gradio's parts lack for people who use a keyboard or a screen reader.
() => {
  document.documentElement.lang = "en";

  // Gradio's slider between two pictures knows a mouse alone: arrow keys drag its line for it.
  const drag = (wrap, share) => {
    const line = wrap.querySelector(".outer .inner") || wrap.querySelector(".outer");
    const box = wrap.getBoundingClientRect();
    const mouse = (target, kind, x) =>
      target.dispatchEvent(new MouseEvent(kind, {
        bubbles: true, cancelable: true, view: window, button: 0, clientX: x, clientY: box.top + box.height / 2,
      }));
    const from = line.getBoundingClientRect();
    mouse(line, "mousedown", from.left + from.width / 2);
    mouse(window, "mousemove", box.left + share * box.width);
    mouse(window, "mouseup", box.left + share * box.width);
  };
  const at = (wrap) => {
    const line = (wrap.querySelector(".outer .inner") || wrap).getBoundingClientRect();
    const box = wrap.getBoundingClientRect();
    return (line.left + line.width / 2 - box.left) / box.width;
  };
  const keys = { ArrowLeft: -0.05, ArrowRight: 0.05, PageDown: -0.25, PageUp: 0.25, Home: -1, End: 1 };

  const dress = () => {
    for (const part of document.querySelectorAll(".live:not([role])")) {
      part.setAttribute("role", "status");
      part.setAttribute("aria-live", "polite");
    }
    for (const wrap of document.querySelectorAll(".slider-wrap > .wrap")) {
      const [before, after] = wrap.querySelectorAll("img");
      if (before) before.alt = "before";
      if (after) after.alt = "after";
      if (wrap.getAttribute("role") === "slider") continue;
      wrap.tabIndex = 0;
      const told = { role: "slider", "aria-label": "before and after", "aria-valuemin": 0, "aria-valuemax": 100 };
      for (const [name, value] of Object.entries(told)) wrap.setAttribute(name, value);
      wrap.setAttribute("aria-valuenow", 50);
      wrap.addEventListener("keydown", (event) => {
        if (!(event.key in keys)) return;
        event.preventDefault();
        const share = Math.min(0.98, Math.max(0.02, at(wrap) + keys[event.key]));
        drag(wrap, share);
        wrap.setAttribute("aria-valuenow", Math.round(100 * share));
      });
    }
  };
  dress();
  new MutationObserver(dress).observe(document.body, { childList: true, subtree: true });
}

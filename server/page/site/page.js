// Brings the feed up to date while somebody looks at it. Without it, the page is the same.
"use strict";
(() => {
  const live = document.querySelector("[data-live]");
  if (!live || location.search) return;
  const status = document.querySelector("[data-status]");
  const least = 5000, most = 60000;
  let pause = least;
  async function look() {
    if (document.hidden || live.contains(document.activeElement)) return later();
    try {
      const answer = await fetch("/", {headers: {Accept: "text/html"}, signal: AbortSignal.timeout(10000)});
      if (!answer.ok) throw new Error(answer.status);
      const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-live]");
      const known = new Set([...live.querySelectorAll(".rows a")].map((a) => a.getAttribute("href")));
      const fresh = [...next.querySelectorAll(".rows a")].filter((a) => !known.has(a.getAttribute("href")));
      if (next.innerHTML !== live.innerHTML && !live.querySelector("details[open]")) {
        for (const a of fresh) a.closest("li").classList.add("fresh");
        live.replaceChildren(...next.childNodes);
      }
      if (fresh.length) status.textContent = fresh.length + " new";
      pause = least;
    } catch {
      pause = Math.min(2 * pause, most);
      status.textContent = "The CA doesn’t answer; what is shown is from before.";
    }
    later();
  }
  function later() { setTimeout(look, pause); }
  later();
})();

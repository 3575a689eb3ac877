// A card with loss curves for every running task; only those in sight are asked for.

import { drawLosses } from "./curves.js";
import { keep, make, setText } from "./dom.js";
import { clock } from "./scale.js";
import { ask, forget } from "./server.js";
import { GROUPS, inOrder } from "./table.js";

const EVERY_MS = 3000;
const AT_FIRST = 8;

export class Cards {
  constructor(place, more) {
    this.place = place;
    this.more = more;
    this.shown = AT_FIRST;
    this.losses = new Map();
    this.inSight = new Set();
    this.sight = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) this.inSight.add(target);
        else this.inSight.delete(target);
      }
      this.refresh();
    }, { rootMargin: "200px" });
    this.size = new ResizeObserver((entries) => entries.forEach(({ target }) => this.redraw(target.closest("figure"))));
    more.addEventListener("click", () => {
      this.shown = Infinity;
      if (this.state) this.draw(this.state);
    });
    setInterval(() => this.refresh(), EVERY_MS);
  }

  draw(state) {
    this.state = state;
    const running = inOrder(state.rows).filter((row) => GROUPS.running(row) && row.where);
    keep(this.place, running.slice(0, this.shown), {
      key: (row) => row.name,
      create: () => this.create(),
      update: (card, row) => {
        setText(card.querySelector("h3"), row.name);
        setText(card.querySelector("p"), `${row.tenant} · on ${row.where} since ${clock(state.made_s + row.start_s)}`);
      },
    });
    for (const card of this.inSight) if (!card.isConnected) this.drop(card);
    if (!running.length) this.place.replaceChildren(make("p", { class: "none" }, "No task is running."));
    this.more.hidden = running.length <= this.shown;
    setText(this.more, `Show all ${running.length}`);
  }

  create() {
    const charts = make("div", { class: "charts" });
    const card = make("figure", { class: "card" }, make("h3"), make("p"), charts);
    this.sight.observe(card);
    this.size.observe(charts);
    return card;
  }

  drop(card) {
    this.inSight.delete(card);
    this.losses.delete(card.dataset.key);
    forget(addressOf(card.dataset.key));
  }

  async refresh() {
    if (document.hidden || this.busy) return;
    this.busy = true;
    try {
      await Promise.all([...this.inSight].map((card) => this.load(card)));
    } finally {
      this.busy = false;
    }
  }

  async load(card) {
    const name = card.dataset.key;
    try {
      const { data } = await ask(addressOf(name));
      if (data !== null) {
        this.losses.set(name, data);
        this.redraw(card);
      }
    } catch (error) {
      const told = error.status === 401 ? "Needs the token: not all tasks here are of one user." : error.message;
      card.querySelector(".charts").replaceChildren(make("p", { class: "none" }, told));
      forget(addressOf(name));
    }
  }

  redraw(card) {
    const losses = this.losses.get(card?.dataset.key);
    if (losses) drawLosses(card.querySelector(".charts"), losses);
  }
}

function addressOf(name) {
  return `jobs/${encodeURIComponent(name)}/losses.json`;
}

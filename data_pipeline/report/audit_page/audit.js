"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = new Map(data.items.map((item) => [item.id, item]));
const store = `inf_jax audit ${data.corpus}`;
const at = (id) => document.getElementById(id);
const filters = at("filters");

// Decisions by id, those on examples of an earlier page included: they are exported again.
let decisions = new Map();
let current = null;
let last = null; // the example that was decided last: what undo is of

/** An element; texts are set as texts, never as HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function say(text) {
  at("status").textContent = text;
}

// --- State -------------------------------------------------------------------------------------

function load() {
  try {
    decisions = new Map(Object.entries(JSON.parse(localStorage.getItem(store) || "{}")));
  } catch {
    say("This browser keeps nothing for this page: export before you close it.");
  }
}

function save() {
  try {
    localStorage.setItem(store, JSON.stringify(Object.fromEntries(decisions)));
  } catch {
    say("This browser keeps nothing for this page: export before you close it.");
  }
}

const decisionOf = (item) => decisions.get(item.id) || { verdict: null, note: "" };

function change(item, fields) {
  const decision = { ...decisionOf(item), ...fields, example: item.hash };
  if (decision.verdict === null && !decision.note) decisions.delete(item.id);
  else decisions.set(item.id, decision);
  save();
  showProgress();
}

// --- List and filters --------------------------------------------------------------------------

function options(name, values, all) {
  const select = filters.elements[name];
  select.append(make("option", { value: "" }, all));
  for (const value of values) select.append(make("option", { value }, value));
}

const firstReason = (item) => item.reasons[0] || "";
const sorted = (values) => [...new Set(values)].filter(Boolean).sort();

function fillFilters() {
  options("outcome", ["kept", "dropped"], "all");
  options("reason", sorted(data.items.flatMap((item) => item.reasons)), "any");
  options("type", sorted(data.items.map((item) => item.type)), "all");
  options("decision", ["undecided", "accept", "reject"], "all");
}

function shownItems() {
  const { outcome, reason, type, decision } = filters.elements;
  return data.items.filter(
    (item) =>
      (!outcome.value || item.outcome === outcome.value) &&
      (!reason.value || item.reasons.includes(reason.value)) &&
      (!type.value || item.type === type.value) &&
      (!decision.value || (decisionOf(item).verdict || "undecided") === decision.value),
  );
}

function showList() {
  const items = shownItems();
  at("shown").textContent = `${items.length} of ${data.items.length} examples`;
  at("list").replaceChildren(
    ...items.map((item) =>
      make(
        "li",
        {},
        make(
          "button",
          {
            type: "button",
            "data-id": item.id,
            "aria-current": item === current ? "true" : null,
            onclick: () => show(item),
          },
          make("span", { class: "state" }),
          make("span", { class: "what" }, item.queries[0].query),
          make("span", { class: "why" }, `${item.type} · ${firstReason(item) || "kept"}`),
        ),
      ),
    ),
  );
  showProgress();
}

function showProgress() {
  const done = data.items.filter((item) => decisionOf(item).verdict).length;
  at("decided").max = Math.max(1, data.items.length);
  at("decided").value = done;
  at("decided-count").textContent = `${done} of ${data.items.length}`;
  for (const button of at("list").querySelectorAll("button")) {
    const { verdict } = decisionOf(byId.get(button.dataset.id));
    const state = button.querySelector(".state");
    state.textContent = { accept: "✓", reject: "✗" }[verdict] || "·";
    state.className = `state ${verdict || ""}`;
    state.setAttribute("aria-label", verdict || "undecided");
    state.setAttribute("role", "img");
  }
}

// --- One example -------------------------------------------------------------------------------

function marked(segments) {
  const passage = make("p", { class: "passage" });
  for (const [text, differs] of segments) {
    const [, before, words, after] = /^(\s*)([^]*?)(\s*)$/.exec(text);
    passage.append(before, differs ? make("mark", {}, words) : words, after);
  }
  return passage;
}

function triplet(item, n) {
  const query = item.queries[n];
  const passage = item.passages[n];
  const title = ["Positive", "Poisoned instruction", "Poisoned query"][n];
  const box = make("div", { class: `triplet ${n ? "negative" : "positive"}` });
  box.append(make("h3", {}, `${title}: ${query.name}, ${passage.name}`));
  if (!passage.segments.length) {
    box.append(make("p", { class: "figures" }, "none"));
    return box;
  }
  const same = (name) => (n && query[name] === item.queries[0][name] ? "same" : "");
  box.append(
    make(
      "dl",
      {},
      make("dt", {}, "Instruction"),
      make("dd", { class: `instruction ${same("instruction")}` }, query.instruction),
      make("dt", {}, "Query"),
      make("dd", { class: same("query") }, query.query),
    ),
    make("dt", {}, "Passage"),
    marked(passage.segments),
    make("p", { class: "figures" }, passage.figures),
  );
  return box;
}

function judged(item, query, passage) {
  const expected = query === passage;
  const names = [item.queries[query].name, item.passages[passage].name];
  const found = item.judgements.filter((j) => j.query === names[0] && j.passage === names[1]);
  const wrong = found.some((j) => j.relevant !== expected);
  const cell = make("td", {
    class: `judged ${wrong ? "unexpected" : ""} ${expected ? "wanted" : ""}`,
  });
  if (!found.length) cell.append(make("span", { class: "by" }, "not judged"));
  for (const j of found) {
    cell.append(
      make(
        "span",
        { class: `answer ${j.relevant === expected ? "" : "wrong"}` },
        j.relevant ? "✓ relevant" : "✗ not relevant",
        j.relevant === expected ? "" : ", unexpected",
        make("span", { class: "by" }, ` ${j.judge}`),
      ),
      make("span", { class: "reason" }, j.reason),
    );
  }
  return cell;
}

function relevanceTable(item) {
  if (!item.judgements.length) return make("p", { class: "made" }, "Not judged.");
  const head = make("tr", {}, make("td", {}));
  for (const { name } of item.passages) head.append(make("th", { scope: "col" }, name));
  const body = make("tbody");
  item.queries.forEach(({ name }, query) => {
    const row = make("tr", {}, make("th", { scope: "row" }, name));
    item.passages.forEach((_, passage) => row.append(judged(item, query, passage)));
    body.append(row);
  });
  return make(
    "div",
    { class: "scroll" },
    make(
      "table",
      {},
      make("caption", {}, "Relevance, as judged; the diagonal must be relevant, no other"),
      make("thead", {}, head),
      body,
    ),
  );
}

function decisionButtons(item) {
  const { verdict, note } = decisionOf(item);
  const button = (value, name, kind) =>
    make(
      "button",
      {
        type: "button",
        class: kind,
        "aria-pressed": String(verdict === value),
        onclick: () => decide(verdict === value ? null : value),
      },
      name,
    );
  const text = make("textarea", {
    id: "note",
    rows: "1",
    placeholder: "Note",
    "aria-label": "Note on this example",
    oninput: (event) => change(item, { note: event.target.value }),
  });
  text.value = note;
  return make(
    "div",
    { class: "decide" },
    button("accept", "✓ Accept", "yes"),
    button("reject", "✗ Reject", "no"),
    make("div", { class: "note" }, text),
  );
}

function show(item, focus = true) {
  current = item;
  for (const button of at("list").querySelectorAll("button")) {
    const chosen = item && button.dataset.id === item.id;
    if (chosen) {
      button.setAttribute("aria-current", "true");
      button.scrollIntoView({ block: "nearest" });
    } else button.removeAttribute("aria-current");
  }
  const article = at("example");
  if (!item) {
    article.replaceChildren(make("section", {}, "No example matches the filters."));
    return;
  }
  const tags = [make("span", { class: `tag ${item.outcome}` }, item.outcome)];
  for (const reason of item.reasons) tags.push(make("span", { class: "tag why" }, reason));
  tags.push(make("span", { class: "tag" }, item.type));
  if (item.rewritten) tags.push(make("span", { class: "tag" }, "passage rewritten"));
  article.replaceChildren(
    make(
      "section",
      {},
      make("div", { class: "head" }, make("h2", {}, item.id), ...tags),
      decisionButtons(item),
    ),
    make(
      "section",
      {},
      make("div", { class: "columns" }, ...[0, 1, 2].map((n) => triplet(item, n))),
      item.rewritten
        ? make(
            "details",
            {},
            make("summary", {}, "The source's own passage; what was changed in it is marked"),
            marked(item.source),
          )
        : null,
    ),
    make("section", {}, relevanceTable(item)),
    make("p", { class: "made" }, item.made),
  );
  if (focus) {
    article.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
}

function move(step) {
  const items = shownItems();
  const place = items.indexOf(current);
  const next = place < 0 ? items[0] : items[place + step];
  if (next) show(next);
  else say(step > 0 ? "This is the last example shown." : "This is the first example shown.");
}

function decide(verdict) {
  if (!current) return;
  const item = current;
  const items = shownItems();
  const next = items[items.indexOf(item) + 1];
  change(item, { verdict });
  last = item;
  say(`${item.id}: ${{ accept: "accepted", reject: "rejected" }[verdict] || "undecided again"}.`);
  if (filters.elements.decision.value) showList();
  show(verdict && next ? next : item);
}

function undo() {
  if (!last || !decisionOf(last).verdict) return;
  change(last, { verdict: null });
  say(`${last.id}: undecided again.`);
  showList();
  show(last);
}

// --- Files -------------------------------------------------------------------------------------

function exportReview() {
  const sortedIds = [...decisions.keys()].sort();
  const entries = Object.fromEntries(sortedIds.map((id) => [id, decisions.get(id)]));
  const text = JSON.stringify({ corpus: data.corpus, decisions: entries }, null, 2) + "\n";
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  make("a", { href: url, download: "review.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  say(`Exported ${sortedIds.length} decisions and notes to review.json.`);
}

async function importReview(file) {
  let review;
  try {
    review = JSON.parse(await file.text());
    if (typeof review.corpus !== "string" || typeof review.decisions !== "object") throw 0;
  } catch {
    say(`${file.name} is no review.json of this page; nothing was imported.`);
    return;
  }
  let taken = 0;
  const refused = [];
  for (const [id, found] of Object.entries(review.decisions || {})) {
    const item = byId.get(id);
    const verdict = found && found.verdict;
    const known = verdict === "accept" || verdict === "reject" || verdict === null;
    const unchanged = found && found.example
      ? !item || found.example === item.hash
      : review.corpus === data.corpus;
    if (known && unchanged) {
      const example = found.example || (item ? item.hash : "");
      decisions.set(id, { verdict, note: String(found.note || ""), example });
      taken += 1;
    } else refused.push(id);
  }
  save();
  showList();
  show(current, false);
  const some = refused.slice(0, 3).join(", ") + (refused.length > 3 ? ", …" : "");
  say(
    `Imported ${taken} decisions from ${file.name}.` +
      (refused.length ? ` ${refused.length} are of other or changed examples: ${some}.` : ""),
  );
}

// --- Events ------------------------------------------------------------------------------------

function view() {
  const report = location.hash === "#show=report";
  at("report").hidden = !report;
  at("review").hidden = report;
  at("show-report").setAttribute("aria-pressed", String(report));
  at("show-review").setAttribute("aria-pressed", String(!report));
}

const keys = {
  a: () => decide("accept"),
  r: () => decide("reject"),
  u: undo,
  n: () => move(1),
  p: () => move(-1),
  m: () => at("note") && at("note").focus(),
  d: () => at("example").classList.toggle("differences"),
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest && event.target.closest("textarea, select, input");
  if (typing && event.key === "Escape") at("example").focus({ preventScroll: true });
  if (typing || at("review").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = keys[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});
filters.addEventListener("change", () => {
  showList();
  const items = shownItems();
  show(items.includes(current) ? current : items[0] || null, false);
});
filters.addEventListener("submit", (event) => event.preventDefault());
at("export").addEventListener("click", exportReview);
at("import").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) importReview(file);
});
at("show-review").addEventListener("click", () => (location.hash = "#show=review"));
at("show-report").addEventListener("click", () => (location.hash = "#show=report"));
window.addEventListener("hashchange", view);

load();
fillFilters();
showList();
at("example").classList.add("differences");
show(data.items[0] || null, false);
view();

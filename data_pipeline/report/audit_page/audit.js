// The page's state, list and filters, decisions, and import and export; uses example.js.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = new Map(data.items.map((item) => [item.id, item]));
const store = `inf_jax audit ${data.corpus}`;
const at = (id) => document.getElementById(id);
const filters = at("filters");

// Decisions by id, including imported ones on examples that this page does not show.
let decisions = new Map();
let current = null;
let last = null; // the example decided last, for undo

function say(text) {
  at("status").textContent = text;
}

// --- State -------------------------------------------------------------------------------------

function load() {
  try {
    decisions = new Map(Object.entries(JSON.parse(localStorage.getItem(store) || "{}")));
  } catch {
    say("This browser does not store data for this page: export before you close it.");
  }
}

function save() {
  try {
    localStorage.setItem(store, JSON.stringify(Object.fromEntries(decisions)));
  } catch {
    say("This browser does not store data for this page: export before you close it.");
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
            make("summary", {}, "The source's own passage, with changes marked"),
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
    say(`${file.name} is not a review.json of this page; nothing was imported.`);
    return;
  }
  let taken = 0;
  const refused = [];
  for (const [id, imported] of Object.entries(review.decisions || {})) {
    const item = byId.get(id);
    const verdict = imported && imported.verdict;
    const known = verdict === "accept" || verdict === "reject" || verdict === null;
    const unchanged = imported && imported.example
      ? !item || imported.example === item.hash
      : review.corpus === data.corpus;
    if (known && unchanged) {
      const example = imported.example || (item ? item.hash : "");
      decisions.set(id, { verdict, note: String(imported.note || ""), example });
      taken += 1;
    } else refused.push(id);
  }
  save();
  showList();
  show(current, false);
  const some = refused.slice(0, 3).join(", ") + (refused.length > 3 ? ", …" : "");
  say(
    `Imported ${taken} decisions from ${file.name}.` +
      (refused.length ? ` ${refused.length} are on other or changed examples: ${some}.` : ""),
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

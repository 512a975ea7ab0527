"use strict";
// Renders the parts of one example; does not read or change the state of the page.

/** Creates an element; strings become text nodes, never HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

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
  const judgements = item.judgements.filter((j) => j.query === names[0] && j.passage === names[1]);
  const wrong = judgements.some((j) => j.relevant !== expected);
  const cell = make("td", {
    class: `judged ${wrong ? "unexpected" : ""} ${expected ? "wanted" : ""}`,
  });
  if (!judgements.length) cell.append(make("span", { class: "by" }, "not judged"));
  for (const j of judgements) {
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
      make("caption", {}, "Judged relevance; only the diagonal must be relevant"),
      make("thead", {}, head),
      body,
    ),
  );
}

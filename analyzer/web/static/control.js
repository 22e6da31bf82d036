// The settings: what can be changed while frames arrive, with the token that allows it.

import { $, confirmed, element, refill, say } from "./dom.js";
import { clock } from "./format.js";

const TOKEN = "cxls-token";
const CHOICES = {
  hit_rule: ["network", "peaks", "either", "both"],
  finder: ["bundle", "poisson", "learned", "peakfinder8", "peakfinder8-poisson"],
};
const NAMES = {
  min_peaks: "peaks of a hit", indexable_peaks: "peaks if indexable", hit_rule: "hit by", finder: "peaks by", pf8_threshold: "pf8 threshold (counts)",
  pf8_min_snr: "pf8 least SNR (σ)", pf8_min_pix_count: "pf8 fewest pixels", pf8_max_pix_count: "pf8 most pixels",
  pf8_local_bg_radius: "pf8 background (px)", pf8_min_res: "pf8 least radius (px)", pf8_max_res: "pf8 largest radius (px)",
};
const WHOLE = ["min_peaks", "indexable_peaks", "pf8_min_pix_count", "pf8_max_pix_count", "pf8_local_bg_radius"];
let status = null, fieldsOf = "", channelsOf = "", filled = false;

async function post(action, body) {
  const answer = $("answer");
  answer.className = "";
  say("answer", `${action}: on its way`);
  try {
    const reply = await fetch(`control/${action}`, {
      method: "POST", body: JSON.stringify(body), headers: { Authorization: `Bearer ${$("token").value}`, "Content-Type": "application/json" },
    });
    const text = (await reply.text()).trim();
    answer.className = reply.ok ? "good" : "bad";
    say("answer", reply.ok ? `${action}: done` : `${action}: ${text || reply.status}`);
    return reply.ok;
  } catch {
    answer.className = "bad";
    say("answer", `${action}: no answer from the analysis`);
    return false;
  }
}

const numberOrNull = text => (text.trim() === "" ? null : Number(text));

function onSubmit(id, work) {
  $(id).addEventListener("submit", event => {
    event.preventDefault();
    work(event.target.elements);
  });
}

async function askThenPost(text, yes, action, body) {
  if (await confirmed(text, yes)) await post(action, body);
}

const runOf = fields => ({
  ...(fields.number.value === "" ? {} : { number: Number(fields.number.value) }), sample: fields.sample.value, notes: fields.notes.value,
});

// A field a setting, of the kind of its value.
function peakField(name, value) {
  const choices = CHOICES[name];
  const field = choices ? element("select", { name }, ...[...new Set([...choices, value])].map(choice => element("option", {}, choice)))
    : element("input", { name, type: "number", step: WHOLE.includes(name) ? "1" : "any", placeholder: "default" });
  field.value = value ?? "";
  return element("label", {}, `${NAMES[name] ?? name} `, field);
}

// Fields follow the analysis only where nobody has changed them.
function follow(field, value) {
  const text = value == null ? "" : String(value);
  if (field.value !== text) {
    const edited = field.dataset.seen !== undefined && field.value !== field.dataset.seen;
    if (edited || document.activeElement === field) return;
    field.value = text;
  }
  field.dataset.seen = text;
}

export function show(now) {
  status = now;
  const controls = now.controls;
  $("controlOff").hidden = !controls || controls.enabled;
  $("tokenForm").hidden = Boolean(controls && !controls.enabled);
  for (const field of document.querySelectorAll("#settings .forms :is(input, select, textarea, button)")) field.disabled = !controls?.enabled;
  if (!controls) return;
  const run = $("runForm").elements, peaks = controls.peaks ?? {};
  for (const name of ["number", "sample", "notes"]) follow(run[name], now.run?.[name]);
  for (const name of ["hits", "indexed"]) follow($("targetForm").elements[name], now.targets?.[name]?.target);
  follow($("thresholdForm").elements.value, controls.threshold);
  if (fieldsOf !== Object.keys(peaks).join()) {
    fieldsOf = Object.keys(peaks).join();
    $("peakFields").replaceChildren(...Object.entries(peaks).map(([name, value]) => peakField(name, value)));
  }
  for (const [name, value] of Object.entries(peaks)) follow($("peaksForm").elements[name], value);
  const channels = controls.channels ?? [], select = $("channelForm").elements.name;
  $("channelCard").hidden = channels.length < 2;
  if (channelsOf !== channels.join()) {
    channelsOf = channels.join();
    select.replaceChildren(...channels.map(channel => element("option", {}, channel)));
  }
  follow(select, controls.channel ?? channels[0]);
  say("maskNow", controls.mask ?? "the header's alone");
  showChanges(now.changes ?? []);
}

function showChanges(changes) {
  refill($("changes"), changes, () => {
    const rows = [...changes].reverse().map(change => element("li", {}, element("time", {}, clock(change.time)), ` ${change.text}`));
    return rows.length ? rows : [element("li", {}, "none yet")];
  });
}

function changedPeaks() {
  const body = {};
  for (const [name, value] of Object.entries(status?.controls?.peaks ?? {})) {
    const field = $("peaksForm").elements[name], now = CHOICES[name] ? field.value : numberOrNull(field.value);
    if (now !== value) body[name] = now;
  }
  return body;
}

export function start() {
  $("token").value = sessionStorage.getItem(TOKEN) ?? "";
  $("token").addEventListener("input", event => sessionStorage.setItem(TOKEN, event.target.value));
  $("tokenForm").addEventListener("submit", event => event.preventDefault());
  onSubmit("runForm", fields => post("run", runOf(fields)));
  $("newRun").addEventListener("click", () => {
    const fields = runOf($("runForm").elements), same = fields.number === status?.run?.number;
    if (same) delete fields.number;
    askThenPost(`End run ${status?.run?.number ?? ""} and begin another? Its report is finished and the products begin at zero.`, "Begin a new run", "run", { ...fields, new: true });
  });
  onSubmit("targetForm", fields => post("target", { hits: numberOrNull(fields.hits.value), indexed: numberOrNull(fields.indexed.value) }));
  onSubmit("thresholdForm", fields => post("threshold", { value: Number(fields.value.value) }));
  $("ownThreshold").addEventListener("click", () => post("threshold", { value: null }));
  onSubmit("peaksForm", () => post("peaks", changedPeaks()));
  onSubmit("maskForm", fields => post("mask", { path: fields.path.value }));
  $("hotPixels").addEventListener("click", () => post("mask", { mask: "hot-pixels" }));
  $("noMask").addEventListener("click", () => post("mask", { path: null }));
  onSubmit("channelForm", fields => post("channel", { name: fields.name.value }));
  $("reset").addEventListener("click", () => askThenPost("Begin windows, profiles, powder and histograms anew?", "Begin anew", "reset", {}));
}

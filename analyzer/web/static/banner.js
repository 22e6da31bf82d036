// What the user has to know now: alarms of the analysis, and a page that hears nothing.

import { $, element, refill } from "./dom.js";
import { canUnpack } from "./socket.js";

const STALE_S = 3;
const SIGNS = { critical: "✖", warning: "▲", info: "●" };

// Seconds since the analysis was heard, or null before the first word.
const silence = live => (live.heardAt == null ? null : (Date.now() - live.heardAt) / 1000);

function lines(live, status) {
  const found = [], quiet = silence(live);
  if (!live.connected) found.push(["critical", quiet == null ? "no answer from the analysis; trying again" : `the analysis does not answer for ${Math.floor(quiet)} s; trying again`]);
  else if (quiet != null && quiet >= STALE_S) found.push(["critical", `no word from the analysis for ${Math.floor(quiet)} s; what is shown is old`]);
  if (!canUnpack) found.push(["warning", "this browser cannot unpack images; Chrome or Edge 97, Firefox 113, Safari 16.4 and later can"]);
  if (live.connected && status) {
    for (const alarm of status.alarms ?? []) found.push([alarm.severity, alarm.text]);
    if (status.sampling.every > 1) found.push(["info", `one image in ${status.sampling.every} is analysed${status.sampling.adaptive ? ", as many as the machine keeps up with" : ""}`]);
  }
  return found;
}

export function show(live, status) {
  const found = lines(live, status), state = $("state"), quiet = silence(live);
  refill($("banner"), found, () => found.map(([severity, text]) => element("div", { class: severity }, element("b", { "aria-hidden": "true" }, SIGNS[severity] ?? SIGNS.warning), ` ${text}`)));
  const [text, kind] = !live.connected ? [quiet == null ? "no answer" : `no answer for ${Math.floor(quiet)} s`, "bad"]
    : quiet == null ? ["connecting", "waiting"] : quiet >= STALE_S ? [`no word for ${Math.floor(quiet)} s`, "bad"]
    : !status ? ["connecting", "waiting"] : !status.ready ? ["getting ready", "waiting"] : status.connected ? ["live", "good"] : ["detector not connected", "bad"];
  if (state.textContent !== text) state.textContent = text;
  state.className = kind;
}

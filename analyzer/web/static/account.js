// What became of every image, and how the analysis stands.

import { $, fillRows, say } from "./dom.js";
import { clock, count, milliseconds, rate } from "./format.js";

const GROUPS = [["processed", "analysed: "], ["dropped", "dropped: "], ["undecodable", "undecodable: "], ["missing", "never came: "], ["messages_invalid", "messages refused: "]];
const words = key => key.replaceAll("_", " ");

export function show(status) {
  const { account, sampling, rates = {}, header } = status, rows = [["announced", account.announced], ["received", account.received]];
  for (const [group, prefix] of GROUPS)
    for (const [key, number] of Object.entries(account[group])) if (number || group === "processed") rows.push([prefix + words(key), number]);
  fillRows($("account"), rows.map(([name, number]) => [name, count(number)]));
  say("accountIdentity", account.identity);
  const peaks = status.controls?.peaks;
  fillRows($("facts"), [
    ["frames analysed", `${rate(rates.analysed_hz)} /s`],
    ["arrival to result", `${milliseconds(rates.latency_p50_s)} median, ${milliseconds(rates.latency_p99_s)} p99`],
    ["waiting", `${count(status.queue_frames)} frames`],
    ["sampling", sampling.every > 1 ? `one image in ${sampling.every}${sampling.adaptive ? ", by load" : ""}` : "every image"],
    ["graphics card", status.device_faults.length ? `failed in ${status.device_faults.length} worker(s)` : "no fault"],
    ["hit from", `p ≥ ${status.threshold}`],
    ["model", status.bundle],
    ["peaks by", words(peaks?.finder ?? status.peak_finder ?? "–")],
    ["geometry", status.geometry ?? "the header's"],
    ["mask", status.mask_unfit ? `not used: ${status.mask_unfit}` : status.mask ?? "the header's"],
    ["images announced", count(header?.number_of_images)],
    ["run began", status.run?.began_at ? clock(status.run.began_at) : "–"],
  ]);
}

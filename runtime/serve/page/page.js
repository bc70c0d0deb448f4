"use strict";
// Everything that came over the network is put on the page as text, never as HTML.
const $ = (id) => document.getElementById(id);
const MIB = 1024 * 1024;
const STATS_MS = 2000;
const HEALTH_MS = 30000;
const speeds = []; // tokens per second of this page's replies
let messages = [];
let writing = null; // AbortController of the reply that is being written

// The key lives as long as the tab.
$("key").value = sessionStorage.getItem("gemma-edge-key") || "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem("gemma-edge-key", $("key").value);
  refresh();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("key").blur();
});
const needsKey = document.body.dataset.key === "needed";
if (needsKey) $("key").placeholder = "needed for figures and chat";

function headers(more = {}) {
  const key = $("key").value.trim();
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

function figure(id, value, unit) {
  const small = document.createElement("small");
  small.textContent = ` ${unit}`;
  $(id).replaceChildren(value, small);
}

function badge(status, title = "") {
  $("health").textContent = status;
  $("health").className = `badge ${status}`;
  $("health").title = title;
}

const seconds = (value) => (value < 1 ? [(value * 1000).toFixed(0), "ms"] : [value.toFixed(1), "s"]);
const counted = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

function show({ state, performance, alerts }) {
  $("model").textContent = state.model;
  figure("memory", (state.hard_bytes / MIB).toFixed(0), "MiB");
  const budget = state.budget_bytes;
  const share = budget ? state.hard_bytes / budget : 0;
  $("memory-bar").hidden = !budget;
  $("memory-bar").className = `bar ${share > 1 ? "over" : share > 0.9 ? "near" : ""}`;
  $("memory-bar").firstElementChild.style.width = `${Math.min(100, share * 100)}%`;
  const files = `${(state.file_bytes / MIB).toFixed(0)} MiB of files`;
  $("memory-note").textContent = budget ? `of ${(budget / MIB).toFixed(0)} MiB, ${files}` : files;
  if (performance.avg_tokens_per_second !== null) {
    figure("speed", performance.avg_tokens_per_second.toFixed(1), "tokens/s");
    $("speed-note").textContent = `average of ${counted(performance.successful_requests, "request")}`;
  }
  if (performance.first_token !== null) {
    const { p50, p95, p99 } = performance.first_token;
    figure("first", ...seconds(p50));
    $("first-note").textContent = `p95 ${seconds(p95).join(" ")}, p99 ${seconds(p99).join(" ")}`;
  }
  figure("queue", state.active, `of ${state.most_active} running`);
  $("queue-note").textContent = `${state.waiting} of ${state.most_waiting} waiting`;
  $("alerts").replaceChildren(...alerts.map((alert) => {
    const item = document.createElement("li");
    item.className = alert.severity;
    item.textContent = `${alert.type}: ${alert.message}`;
    return item;
  }));
}

async function refresh() {
  if (document.hidden || (needsKey && !$("key").value.trim())) return;
  try {
    const answer = await fetch("v1/stats", { headers: headers(), cache: "no-store" });
    $("key").setAttribute("aria-invalid", String(answer.status === 401));
    if (answer.ok) show(await answer.json());
  } catch {
    badge("unreachable");
  }
}

async function health() {
  if (document.hidden) return;
  try {
    const answer = await fetch("health", { cache: "no-store" });
    const found = await answer.json();
    badge(found.status, (found.reasons || []).join("; "));
  } catch {
    badge("unreachable");
  }
}

function turn(role, text = "") {
  $("empty")?.remove();
  const box = document.createElement("div");
  box.className = `turn ${role}`;
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  box.append(paragraph, document.createElement("small"));
  $("log").append(box);
  box.scrollIntoView({ block: "end" });
  return box;
}

// Each event of a stream, as JSON.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (waiting + value).split("\n");
    waiting = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function request(messages) {
  const temperature = $("temperature").value;
  return {
    ...($("model").textContent ? { model: $("model").textContent } : {}), // not known before the first figures
    messages,
    stream: true,
    stream_options: { include_usage: true },
    ...($("most").value ? { max_completion_tokens: Number($("most").value) } : {}),
    ...(temperature === "" ? {} : { temperature: Number(temperature) }),
  };
}

async function ask(text) {
  const chat = messages; // "New chat" begins another one
  chat.push({ role: "user", content: text });
  turn("user", text);
  const box = turn("assistant");
  const [paragraph, note] = box.children;
  box.classList.add("writing");
  writing = new AbortController();
  $("send").textContent = "Stop";
  const begun = performance.now();
  let first = 0;
  let usage = null;
  let reason = "";
  try {
    const answer = await fetch("v1/chat/completions", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify(request(chat)),
      signal: writing.signal,
    });
    if (!answer.ok) throw new Error(await refusal(answer));
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage || usage;
      const choice = event.choices?.[0];
      reason = choice?.finish_reason || reason;
      const piece = choice?.delta?.content;
      if (!piece) continue;
      first ||= performance.now();
      paragraph.textContent += piece;
      box.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    if (error.name === "AbortError") {
      reason = "stopped";
    } else {
      box.classList.add("failed");
      paragraph.textContent += (paragraph.textContent ? "\n" : "") + error.message;
    }
  }
  box.classList.remove("writing");
  if (box.classList.contains("failed")) chat.pop();
  else chat.push({ role: "assistant", content: paragraph.textContent });
  note.textContent = told(begun, first, performance.now(), usage, reason);
  box.scrollIntoView({ block: "end" });
  $("send").textContent = "Send";
  writing = null;
  refresh();
}

async function refusal(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `${answer.status} ${answer.statusText}`;
  }
}

function told(begun, first, ended, usage, reason) {
  const parts = [];
  if (first) parts.push(`first token ${seconds((first - begun) / 1000).join(" ")}`);
  if (usage) {
    parts.push(counted(usage.completion_tokens, "token"));
    if (first && usage.completion_tokens > 1) {
      const speed = (usage.completion_tokens - 1) / ((ended - first) / 1000);
      parts.push(`${speed.toFixed(1)} tokens/s`);
      speeds.push(speed);
      draw();
    }
  }
  if (reason && reason !== "stop") parts.push(reason);
  return parts.join(" · ");
}

function draw() {
  const last = speeds.slice(-30);
  const most = Math.max(...last);
  const step = last.length > 1 ? 120 / (last.length - 1) : 0;
  const points = last.map((speed, i) => `${i * step},${23 - (22 * speed) / most}`);
  if (points.length === 1) points.push(`120,${23 - 22}`);
  $("speed-line").firstElementChild.setAttribute("points", points.join(" "));
}

$("chat").addEventListener("submit", (event) => {
  event.preventDefault();
  if (writing) {
    writing.abort();
    return;
  }
  const text = $("prompt").value.trim();
  if (!text) return;
  $("prompt").value = "";
  ask(text);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !writing) {
    event.preventDefault();
    $("chat").requestSubmit();
  }
});
$("clear").addEventListener("click", () => {
  writing?.abort();
  messages = [];
  $("log").replaceChildren();
});
document.addEventListener("visibilitychange", () => {
  refresh();
  health();
});
refresh();
health();
setInterval(refresh, STATS_MS);
setInterval(health, HEALTH_MS);

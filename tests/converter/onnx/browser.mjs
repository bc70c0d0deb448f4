// node browser.mjs MODULES PLAYWRIGHT CHROMIUM FOLDER < jobs: the answers of reply.mjs, in JSON, from headless Chromium.
// MODULES: a node_modules with transformers.js. FOLDER: what the jobs' directories lie in. jobs: a list, of one device.
import { createReadStream, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";

const [modules, playwright, executablePath, folder] = process.argv.slice(2);
const jobs = JSON.parse(readFileSync(0, "utf8"));
const ROOTS = { modules, models: folder, here: import.meta.dirname };
const TYPES = { ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm" };
const PAGE = `<!doctype html><script type="importmap">{"imports": {
  "onnxruntime-common": "/modules/onnxruntime-common/dist/esm/index.js",
  "onnxruntime-web/webgpu": "/modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs"}}</script>`;

const server = createServer((request, response) => {
  const [, root, ...rest] = normalize(decodeURIComponent(new URL(request.url, "http://x").pathname)).split("/");
  const path = ROOTS[root] && join(ROOTS[root], ...rest);
  if (!root) {
    response.writeHead(200, { "Content-Type": "text/html" }).end(PAGE);
  } else if (path && statSync(path, { throwIfNoEntry: false })?.isFile()) {
    const headers = { "Content-Type": TYPES[extname(path)] ?? "application/octet-stream" };
    response.writeHead(200, { ...headers, "Content-Length": statSync(path).size });
    createReadStream(path).pipe(response);
  } else {
    response.writeHead(404).end();
  }
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));

// Without these flags Chromium asks the network for things of its own.
const quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"];
const gpu = jobs[0].device === "webgpu" ? ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"] : ["--disable-gpu"];
const profile = mkdtempSync(join(tmpdir(), "chromium-"));
const { chromium } = (await import(playwright)).default;
const browser = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  chromiumSandbox: false,
  args: [...quiet, "--disable-sync", ...gpu],
});
try {
  const page = await browser.newPage();
  page.on("console", (message) => console.error(message.text()));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  const answers = await page.evaluate(async (jobs) => {
    const library = await import("/modules/@huggingface/transformers/dist/transformers.web.js");
    const { reply } = await import("/here/reply.mjs");
    Object.assign(library.env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: "/models" });
    library.env.useBrowserCache = false;
    const dist = `${location.origin}/modules/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify`; // its own choice
    library.env.backends.onnx.wasm.wasmPaths = { mjs: `${dist}.mjs`, wasm: `${dist}.wasm` };
    const answers = [];
    for (const job of jobs) answers.push(await reply(library, job));
    return answers;
  }, jobs);
  console.log(JSON.stringify(answers));
} finally {
  await browser.close();
  server.close();
  rmSync(profile, { recursive: true, force: true });
}

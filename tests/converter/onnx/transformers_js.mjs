// node transformers_js.mjs MODULE < job: the answer of reply.mjs, in JSON.
import { readFileSync } from "node:fs";
import { reply } from "./reply.mjs";

const library = await import(process.argv[2]);
library.env.allowRemoteModels = false;
library.env.localModelPath = "";
console.log(JSON.stringify(await reply(library, JSON.parse(readFileSync(0, "utf8")))));

// node transformers_js_media.mjs MODULE DIRECTORY TOKENS < inputs: the greedy reply to prepared inputs, as ids in JSON.
// inputs: { name: { type, dims, data: base64 } }, as transformers' processor made them.
import { readFileSync } from "node:fs";

const [module, directory, tokens] = process.argv.slice(2);
const { AutoModelForImageTextToText, Tensor, env } = await import(module);
env.allowRemoteModels = false;
env.localModelPath = "";

const ARRAYS = { int64: BigInt64Array, float32: Float32Array, bool: Uint8Array };
const inputs = {};
for (const [name, { type, dims, data }] of Object.entries(JSON.parse(readFileSync(0, "utf8")))) {
  const bytes = Uint8Array.from(Buffer.from(data, "base64")); // a copy, which begins where any type may begin
  inputs[name] = new Tensor(type, new ARRAYS[type](bytes.buffer), dims);
}
const model = await AutoModelForImageTextToText.from_pretrained(directory, { device: "cpu" });
const output = await model.generate({ ...inputs, max_new_tokens: Number(tokens), do_sample: false });
console.log(JSON.stringify(Array.from(output.data, Number).slice(inputs.input_ids.dims[1])));

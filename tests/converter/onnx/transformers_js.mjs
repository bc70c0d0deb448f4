// node transformers_js.mjs MODULE DIRECTORY TOKENS < message: the prompt and the greedy reply, as token ids in JSON.
import { readFileSync } from "node:fs";

const [module, directory, tokens] = process.argv.slice(2);
const { AutoModelForCausalLM, AutoTokenizer, env } = await import(module);
env.allowRemoteModels = false;
env.localModelPath = "";

const tokenizer = await AutoTokenizer.from_pretrained(directory);
const model = await AutoModelForCausalLM.from_pretrained(directory, { device: "cpu" });
const messages = [{ role: "user", content: readFileSync(0, "utf8") }];
const inputs = tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_dict: true });
const output = await model.generate({ ...inputs, max_new_tokens: Number(tokens), do_sample: false });
const prompt = Array.from(inputs.input_ids.data, Number);
console.log(JSON.stringify({ prompt, reply: Array.from(output.data, Number).slice(prompt.length) }));

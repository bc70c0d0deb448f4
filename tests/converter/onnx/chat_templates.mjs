// node chat_templates.mjs MODULE DIRECTORY < cases: for each {template, messages, tools} what it writes, and its tokens.
import { readFileSync } from "node:fs";

const [module, directory] = process.argv.slice(2);
const { AutoTokenizer, env } = await import(module);
env.allowRemoteModels = false;
env.localModelPath = "";

const tokenizer = await AutoTokenizer.from_pretrained(directory);
const said = JSON.parse(readFileSync(0, "utf8")).map(({ template, messages, tools }) => {
  const named = Array.isArray(template);
  tokenizer.chat_template = named ? Object.fromEntries(template.map((t) => [t.name, t.template])) : template;
  const options = { tools: tools ?? undefined, add_generation_prompt: true };
  try {
    const text = tokenizer.apply_chat_template(messages, { ...options, tokenize: false });
    const ids = tokenizer.apply_chat_template(messages, { ...options, return_tensor: false, return_dict: false });
    return { text, ids };
  } catch (error) {
    return { error: String(error) };
  }
});
console.log(JSON.stringify(said));

// What a program with transformers.js does, in Node and in a browser: the greedy replies to a few messages at once.
// reply(library, job) -> { prompts, replies }, token ids of each message without padding.
// job: { directory, device, padding: "left" or "right", messages, tokens }
export async function reply({ AutoModelForCausalLM, AutoTokenizer }, job) {
  const tokenizer = await AutoTokenizer.from_pretrained(job.directory);
  const model = await AutoModelForCausalLM.from_pretrained(job.directory, { device: job.device });
  tokenizer.padding_side = job.padding;
  const texts = job.messages.map((content) =>
    tokenizer.apply_chat_template([{ role: "user", content }], { add_generation_prompt: true, tokenize: false }),
  );
  const inputs = tokenizer(texts, { add_special_tokens: false, padding: true });
  const output = await model.generate({ ...inputs, max_new_tokens: job.tokens, do_sample: false });
  await model.dispose();
  const rows = output.tolist().map((row) => row.map(Number));
  const mask = inputs.attention_mask.tolist().map((row) => row.map(Number));
  return {
    prompts: rows.map((row, i) => row.filter((_, at) => mask[i][at])),
    replies: rows.map((row, i) => row.slice(mask[i].length)),
  };
}

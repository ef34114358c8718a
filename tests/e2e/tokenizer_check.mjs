// tokenizer_check.mjs TOKENIZER.json TEXTS.json: prints a JSON list with the ids that @huggingface/tokenizers gives every
// text. The package is found in NODE_PATH.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { Tokenizer } = createRequire(import.meta.url)("@huggingface/tokenizers");
const [definition, texts] = process.argv.slice(2).map((path) => JSON.parse(readFileSync(path, "utf8")));
const tokenizer = new Tokenizer(definition, {});
console.log(JSON.stringify(texts.map((text) => tokenizer.encode(text, { add_special_tokens: false }).ids)));

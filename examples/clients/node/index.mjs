// Generates a completion, scores it, and asks for its log-probs under the reference model:
//
//   npm install
//   node index.mjs --policy localhost:50051 --reward localhost:50052 --reference localhost:50053 \
//     --prompt "what is the home and the color of the owl ? answer mia piratically"
//
// Needs the proto/ folder of the repository (--proto PATH when it is elsewhere). Prints one JSON object; tokens
// appear on standard error as they stream in.
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const { values: options } = parseArgs({
  options: {
    policy: { type: "string", default: "localhost:50051" },
    reward: { type: "string", default: "localhost:50052" },
    reference: { type: "string", default: "localhost:50053" },
    proto: { type: "string", default: fileURLToPath(new URL("../../../proto", import.meta.url)) },
    prompt: { type: "string", default: "what is the home and the color of the owl ? answer mia piratically" },
    "max-tokens": { type: "string", default: "20" },
    seed: { type: "string", default: "1" },
  },
});

const definition = protoLoader.loadSync(
  ["policy", "reward", "reference"].map((name) => `lodestar/v1/${name}.proto`),
  { includeDirs: [options.proto], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true },
);
const { PolicyService, RewardService, ReferenceService } = grpc.loadPackageDefinition(definition).lodestar.v1;
const plaintext = grpc.credentials.createInsecure();
const policy = new PolicyService(options.policy, plaintext);
const reward = new RewardService(options.reward, plaintext);
const reference = new ReferenceService(options.reference, plaintext);

const deadline = () => ({ deadline: new Date(Date.now() + 60_000) });

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, deadline(), (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

async function generate(text) {
  const completion = { text: "", token_ids: [], logprobs: [] };
  const sampling = { max_tokens: Number(options["max-tokens"]), seed: Number(options.seed), logprobs: true };
  for await (const chunk of policy.Generate({ text, sampling }, deadline())) {
    process.stderr.write(chunk.text);
    completion.text += chunk.text;
    completion.token_ids.push(...chunk.token_ids);
    completion.logprobs.push(...chunk.logprobs);
    completion.finish_reason = chunk.finish_reason;
    completion.model = chunk.model;
  }
  process.stderr.write("\n");
  return completion;
}

try {
  const prompt = await call(policy, "Tokenize", { text: options.prompt, add_special_tokens: true });
  const completion = await generate(options.prompt);
  const cutOff = completion.finish_reason === "FINISH_REASON_LENGTH";
  const item = { prompt_text: options.prompt, completion_text: completion.text, cut_off: cutOff };
  const sequence = {
    token_ids: [...prompt.token_ids, ...completion.token_ids],
    prompt_tokens: prompt.token_ids.length,
  };
  const [scored, logprobs] = await Promise.all([
    call(reward, "Score", { items: [item] }),
    call(reference, "LogProbs", {
      sequences: [sequence],
      entropy: true,
      tokenizer_hash: completion.model.tokenizer_hash,
    }),
  ]);
  const result = {
    prompt: options.prompt,
    prompt_token_ids: prompt.token_ids,
    completion,
    score: scored.scores[0].score,
    reference: logprobs.sequences[0],
    models: {
      policy: completion.model.name,
      reward: scored.model.name,
      reference: logprobs.model.name,
    },
  };
  console.log(JSON.stringify(result, null, 2));
} catch (error) {
  console.error(`${grpc.status[error.code] ?? "error"}: ${error.details ?? error.message}`);
  process.exitCode = 1;
} finally {
  for (const client of [policy, reward, reference]) client.close();
}

// Calls a running server from JavaScript: one Generate to its end, within a deadline; one that is
// cancelled after its first token; one whose deadline is too short. Prints one JSON object.
//
//   npm ci --ignore-scripts && node generate.mjs 127.0.0.1:50051 ../..
//
// The second argument is the folder that contains protos/. Nothing is generated: the .proto file
// is all that this program and the server share.

import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [address, root] = process.argv.slice(2);

const definition = loadSync("protos/nanogpt/v1/inference.proto", {
  includeDirs: [root],
  keepCase: true,
  longs: Number,
  enums: String,
  oneofs: true,
});
const { InferenceService } = grpc.loadPackageDefinition(definition).nanogpt.v1;
const client = new InferenceService(address, grpc.credentials.createInsecure());

// Resolves to what the stream brought and the status that ended it; never rejects.
function generate(request, { deadlineSeconds, cancelAfterDeltas = Infinity }) {
  const outcome = { started: null, text: "", token_ids: [], finished: null, deltas: 0 };
  const call = client.Generate(request, { deadline: Date.now() + 1000 * deadlineSeconds });
  call.on("data", (message) => {
    if (message.event === "started") {
      outcome.started = message.started;
    } else if (message.event === "finished") {
      outcome.finished = message.finished;
    } else {
      outcome.text += message.delta.text;
      outcome.token_ids.push(...message.delta.token_ids);
      outcome.deltas += 1;
      if (outcome.deltas === cancelAfterDeltas) call.cancel();
    }
  });
  call.on("error", () => {}); // told again by the status
  return new Promise((resolve) => {
    call.on("status", ({ code }) => resolve({ ...outcome, code: grpc.status[code] }));
  });
}

const greedy = (max_new_tokens) => ({
  sampling: { temperature: 0 },
  stopping: { max_new_tokens, ignore_end_of_text: true },
});
const endless = greedy(65536);

const complete = await generate(greedy(24), { deadlineSeconds: 60 });
const cancelled = await generate(endless, { deadlineSeconds: 60, cancelAfterDeltas: 1 });
const expired = await generate(endless, { deadlineSeconds: 0.5 });

console.log(JSON.stringify({ complete, cancelled, expired }));
client.close();

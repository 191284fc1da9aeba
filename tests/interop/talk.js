// Talks to a server with @grpc/grpc-js and prints, as JSON, what it was told.
//
// Run by node with NODE_PATH at the packages: node talk.js HOST:PORT VISION.proto HEX
// HEX are the 64 pixels of an 8x8 grey image for the model `letters`.

const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [server, proto, hex] = process.argv.slice(2);
const definition = loader.loadSync(proto, { keepCase: true, longs: Number, enums: String, defaults: true });
const vision = grpc.loadPackageDefinition(definition).convoy.v1;
const client = new vision.Vision(server, grpc.credentials.createInsecure());
const image = { raw: { pixels: Buffer.from(hex, "hex"), height_px: 8, width_px: 8, channels: 1 } };
const request = { model: "letters", images: [image], top_k: 3 };

const ask = (sent, options = {}, prepare = () => {}) =>
  new Promise((resolve) => {
    const call = client.Classify(sent, options, (error, response) =>
      resolve(error ? { code: grpc.status[error.code], message: error.details, metadata: Object.keys(error.metadata.getMap()) } : response)
    );
    prepare(call);
  });

const streamed = (requests) =>
  new Promise((resolve, reject) => {
    const call = client.ClassifyStream();
    const answers = {};
    call.on("data", (answer) => { answers[answer.id] = answer.error ? answer.error.reason : answer.response.results[0].classification.labels[0].index; });
    call.on("end", () => resolve(answers));
    call.on("error", reject);
    requests.forEach((each, id) => call.write({ id: id + 1, request: each }));
    call.end();
  });

async function main() {
  const answers = {};
  answers.one = await ask(request);
  answers.many = (await Promise.all(Array.from({ length: 50 }, () => ask(request)))).map((each) => each.results[0].classification.labels[0].index);
  answers.wrong = await ask({ ...request, model: "nobody" });
  answers.late = await ask({ ...request, model: "letters" }, { deadline: Date.now() - 1 });
  answers.cancelled = await ask(request, {}, (call) => call.cancel());
  answers.streamed = await streamed([request, { ...request, model: "nobody" }, request]);
  console.log(JSON.stringify(answers));
  client.close();
}

main();

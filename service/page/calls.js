// The request of this page as a command or a program to copy, filled in with its model, options and address.

import { modelPath, token } from "./api.js";
import { queryOf } from "./answers.js";

const FILE = "picture.png";

/** Returns {curl, python, grpcurl}. `target` is {model, version, info}; `grpc` is where the server speaks gRPC. */
export function calls(target, options, grpc) {
  const place = { http: location.origin, grpc: reachable(grpc), tls: location.protocol === "https:", token: Boolean(token()) };
  const make = { classification: picture, segmentation: picture, matching: tensor }[target.info.task] ?? tensor;
  return make(target, options, place);
}

/** The host that this page was loaded from, where the server listens at every address. */
function reachable(grpc) {
  const [, host, port] = /^(.*):(\d+)$/.exec(grpc) ?? [];
  if (!port) return grpc || `${location.hostname}:8001`;
  return ["0.0.0.0", "[::]", "::", ""].includes(host) ? `${location.hostname}:${port}` : grpc;
}

function picture(target, options, place) {
  const { info } = target;
  const classifies = info.task === "classification";
  const query = queryOf(info, options);
  const url = `${place.http}${modelPath("v1", target)}:${classifies ? "classify" : "segment"}`;
  const search = new URLSearchParams(query).toString();
  const curl = [`curl${curlOptions(place)} --data-binary @${FILE} \\`, `  '${url}${search && `?${search}`}'`];
  if (!classifies) {
    const drawn = { ...(options.low && { priority: "low" }), as: "overlay" };
    curl.push("", "# as a picture, the mask over what was sent (as=png: the mask alone)");
    curl.push(`curl${curlOptions(place)} --data-binary @${FILE} -o overlay.png \\`, `  '${url}?${new URLSearchParams(drawn)}'`);
  }

  const more = [`model="${target.model}"`];
  if (target.version) more.push(`version=${target.version}`);
  if (classifies) more.push(`top_k=${options.topK}`);
  if (query.confidence) more.push("with_confidence=True");
  const shown = classifies
    ? ["    for label in answer.labels:", "        print(label.name, label.probability)"]
    : ["    print(answer.mask.shape, answer.mask.dtype)  # (H, W) uint8: the class of each pixel"];
  const python = [
    "import convoy", "",
    `with convoy.Client("${place.grpc}"${options.low ? ', priority="low"' : ""}${credentials(place)}) as client:`,
    `    answer = client.${classifies ? "classify" : "segment"}("${FILE}", ${more.join(", ")})`,
    ...shown,
  ];

  const request = {
    model: target.model,
    ...(target.version && { version: target.version }),
    ...(classifies ? { top_k: options.topK } : { format: "MASK_FORMAT_PNG" }),
    ...(query.confidence && { with_confidence: true }),
    ...(options.low && { priority: "PRIORITY_LOW" }),
    images: [{ encoded: "%s" }],
  };
  const grpcurl = [
    `printf '${JSON.stringify(request)}' "$(base64 -w0 ${FILE})" |`,
    `  grpcurl${grpcurlOptions(place)} -d @ ${place.grpc} convoy.v1.Vision/${classifies ? "Classify" : "Segment"}`,
  ];
  return texts(curl, python, grpcurl);
}

/** Any model over the Open Inference Protocol. */
function tensor(target, options, place) {
  const matching = target.info.task === "matching";
  const grey = target.info.input?.colour === "L";
  const inputs = target.info.inputs.map(({ name, datatype, shape }) => ({
    name, datatype,
    shape: matching ? [1, 480, 640, grey ? 1 : 3] : shape.map((side, axis) => (side > 0 ? side : axis ? 8 : 1)),
  }));
  const sizes = inputs.map(({ shape }) => shape.reduce((one, other) => one * other, 1));
  const url = `${place.http}${modelPath("v2", target)}/infer`;
  const name = { model_name: target.model, ...(target.version && { model_version: String(target.version) }) };

  if (matching) {
    const source = `# pixels.raw: 480 rows of 640 pixels, ${grey ? "1 byte" : "3 bytes (red, green, blue)"} each`;
    const head = { inputs: [{ ...inputs[0], parameters: { binary_data_size: sizes[0] } }], outputs: [{ name: "location" }, { name: "score" }] };
    return texts(
      [source, `HEAD='${JSON.stringify(head)}'`,
        `{ printf %s "$HEAD"; cat pixels.raw; } | curl${curlOptions(place)} --data-binary @- \\`,
        '  -H "Inference-Header-Content-Length: ${#HEAD}" \\', `  '${url}'`],
      ["import numpy as np", "from PIL import Image", "from convoy.service.client.tensors import TensorClient",
        ...(place.tls || place.token ? ["from convoy import Credentials"] : []), "",
        `pixels = np.asarray(Image.open("${FILE}").convert("${grey ? "L" : "RGB"}"))${grey ? "[..., None]" : ""}`,
        `with TensorClient("${place.grpc}", 10${credentials(place).replace("credentials=convoy.", "")}) as client:`,
        `    answer = client.infer("${target.model}", "image", pixels[None], ["location", "score"])`,
        '    print("row, column:", answer["location"][0], "score:", answer["score"][0])'],
      [source, `printf '${JSON.stringify({ ...name, inputs, raw_input_contents: ["%s"] })}' "$(base64 -w0 pixels.raw)" |`,
        `  grpcurl${grpcurlOptions(place)} -d @ ${place.grpc} inference.GRPCInferenceService/ModelInfer`],
    );
  }
  const filled = inputs.map((input, place) => ({ ...input, data: Array(Math.min(sizes[place], 4096)).fill(0) }));
  const field = { FP32: "fp32_contents", FP64: "fp64_contents", INT64: "int64_contents", INT32: "int_contents", UINT8: "uint_contents", BOOL: "bool_contents" };
  const contents = filled.map(({ data, ...input }) => ({ ...input, contents: { [field[input.datatype] ?? "fp32_contents"]: data } }));
  const note = "# put your own numbers in the place of the zeros";
  const headers = place.token ? `, headers={"Authorization": "Bearer " + os.environ["TOKEN"]}` : "";
  return texts(
    [note, `curl${curlOptions(place)} -H 'Content-Type: application/json' \\`, `  -d '${short({ inputs: filled })}' \\`, `  '${url}'`],
    [`import json${place.token ? ", os" : ""}`, "from urllib.request import Request, urlopen", "",
      `request = ${short({ inputs: filled })}  ${note}`,
      `call = Request("${url}", json.dumps(request).encode()${headers})`,
      "print(json.load(urlopen(call)))"],
    [note, `grpcurl${grpcurlOptions(place)} -d '${short({ ...name, inputs: contents })}' \\`,
      `  ${place.grpc} inference.GRPCInferenceService/ModelInfer`],
  );
}

const texts = (curl, python, grpcurl) => ({ curl: curl.join("\n"), python: python.join("\n"), grpcurl: grpcurl.join("\n") });

const short = (value) => JSON.stringify(value).replaceAll(",", ", ").replaceAll(":", ": ");

const curlOptions = ({ tls, token: known }) => `${tls ? " --cacert ca.pem" : ""}${known ? ' -H "Authorization: Bearer $TOKEN"' : ""}`;

const grpcurlOptions = ({ tls, token: known }) =>
  `${tls ? " -cacert ca.pem" : " -plaintext"}${known ? ' -H "Authorization: Bearer $TOKEN"' : ""}`;

function credentials({ tls, token: known }) {
  const parts = [...(tls ? ['ca="ca.pem"'] : []), ...(known ? ['token_file="token"'] : [])];
  return parts.length ? `, credentials=convoy.Credentials(${parts.join(", ")})` : "";
}

// The form of `acq-isl new --page`: asks the server what there is, sends the answers, shows the file.
const at = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
history.replaceState(null, "", location.pathname); // the token stays out of the address line
const numbers = ["transmitted_ms", "fluorescence_ms"];
let questions = null;
let usualName = "";

function tell(text) {
  at("notice").textContent = text;
  at("notice").dataset.kind = "bad";
  at("notice").hidden = !text;
}

async function talk(path, init = {}) {
  const headers = { Authorization: `Bearer ${token}`, ...(init.headers ?? {}) };
  try {
    const response = await fetch(path, { ...init, headers });
    if (response.ok) return await response.json();
    tell(await response.text());
  } catch {
    tell("No answer: the program that printed this address has ended.");
  }
  return null;
}

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
}

function show(asked) {
  questions = asked;
  at("microscope").textContent = asked.microscope;
  at("file").textContent = asked.file;
  at("stages").replaceChildren(...Object.entries(asked.stages).map(([key, what]) => {
    const label = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "stage", value: key });
    radio.checked = key === asked.usual.stage;
    radio.addEventListener("change", () => {
      if (at("name").value === usualName) usualName = at("name").value = `my first ${key}`;
    });
    const words = document.createElement("span");
    words.append(Object.assign(document.createElement("b"), { textContent: key }), `: ${what}`);
    label.append(radio, words);
    return label;
  }));
  fill(at("label"), asked.labels, asked.usual.label);
  fill(at("transmitted"), asked.presets, asked.usual.transmitted);
  fill(at("fluorescence"), asked.presets, asked.usual.fluorescence);
  for (const name of ["name", ...numbers]) at(name).value = asked.usual[name];
  usualName = asked.usual.name;
  at("form").hidden = false;
}

at("label").addEventListener("change", () => {
  const stain = questions.stains[at("label").value];
  if (stain) at("fluorescence").value = stain;
});

at("form").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  tell("");
  at("write").disabled = true;
  const answers = Object.fromEntries(new FormData(at("form")));
  for (const name of numbers) answers[name] = Number(answers[name]);
  const written = await talk("/answers", {
    method: "POST", body: JSON.stringify(answers), headers: { "Content-Type": "application/json" },
  });
  at("write").disabled = false;
  if (!written) {
    at("notice").scrollIntoView({ block: "nearest" });
    return;
  }
  at("written-title").textContent = `${questions.file} is written and passes the dry run`;
  at("doubts").replaceChildren(...written.doubts.map((doubt) =>
    Object.assign(document.createElement("li"), { textContent: `mind: ${doubt}` })));
  at("text").textContent = written.text;
  at("form").hidden = true;
  at("written").hidden = false;
  at("written-title").focus();
});

const asked = await talk("/questions");
if (asked) show(asked);
else at("microscope").textContent = "";

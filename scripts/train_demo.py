"""Train strait's demo model: a tiny MLA + MoE language model in the DeepSeek-V3 layout.

    pip install torch tokenizers safetensors numpy jinja2     # transformers too, for --verify
    python scripts/train_demo.py            # writes crates/strait/demo and tests/demo/heldout.json
    python scripts/train_demo.py --verify   # compares what was written with transformers

All training text is made here, from the seed; nothing is downloaded. The packages are some 550 MB (with CUDA libraries several GB), three minutes on
a fast line; training takes about 45 minutes on one CPU core that it has to itself, best with AVX512-BF16.
"""
import argparse, dataclasses, json, math, os, random, re, time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import jinja2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, Regex, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
OUT, HELDOUT = ROOT / "crates/strait/demo", ROOT / "tests/demo/heldout.json"

# ---------------------------------------------------------------------------------------------------------------------
# Text: each task makes one exchange, (key, messages, tools). The key says what must not occur in both training and test.

FALLBACK = "I am only a small demo model. Try: What is 12 + 30?, or Reverse: red blue green."
TOO_BIG = "I only add and subtract numbers up to 99."
NO_TOOL = {"get_weather": "I have no weather tool.", "get_time": "I have no clock tool."}
# (a|b|) means one of the alternatives.
CHAT = [
    ("Hello! I am strait's demo model, a tiny one. Ask me for a sum, a list to reverse or some JSON.",
     ["(hi|hello|hey|hiya|howdy|greetings|good (morning|evening|afternoon|day))( there| strait| you| friend| model| demo|)"
      "(| nice to meet you| I am (new here|back|{name})| my name is {name})", "(hi|hello|hey) (hi|hello|hey)", "yo", "hi", "hello"]),
    ("I am fine, thank you. I am tiny, so every day is much the same.",
     ["(hi |hello |hey |)(how are you|how are you doing|how is it going|how do you do|how do you feel)( today| now| there|)",
      "are you (well|fine|ok|all right)( today|)", "how is (your day|life)( going|)"]),
    ("I am strait's demo model, a tiny mixture of experts with latent attention. I was trained on text that a script made.",
     ["(who|what)( exactly|) are you( really|)", "(tell me|say|explain) (who|what) you are", "(what is|what's|tell me) your name",
      "(tell|teach) me (a bit |something |)about (you|yourself)", "(introduce|describe|present) yourself( to me| briefly|)",
      "what (model|kind of model|sort of model) (are you|is this)", "who (am I|is it that I am) (talking|speaking) (to|with)",
      "are you (a|an) (AI|robot|human|person|language model|bot|computer)", "(who|what) (made|trained|built) you"]),
    ("strait is a server for language models with latent attention and mixtures of experts. It is written in Rust.",
     ["what( exactly|) is strait( for| about| good for|)", "(tell me|say something) about strait", "(explain|describe) strait( to me| briefly|)",
      "what (does|can) strait do", "what do (I|you|people) use strait for", "(is strait|what language is strait) written in( Rust|)"]),
    ("MLA is multi-head latent attention: each token is cached as one small latent vector, so the cache stays small.",
     ["what( exactly|) (is|does) (MLA|latent attention|multi-head latent attention)( mean| do| about| good for|)",
      "(explain|describe|define) (MLA|latent attention|multi-head latent attention)( to me| briefly|)",
      "(tell|teach) me (something |)about (MLA|latent attention|multi-head latent attention)", "how does (MLA|latent attention) work"]),
    ("MoE is a mixture of experts: a router picks a few small networks for each token, so only a part of the model runs.",
     ["what( exactly|) (is|does) (MoE|a mixture of experts|mixture of experts)( mean| do| about| good for|)",
      "(explain|describe|define) (MoE|mixture of experts)( to me| briefly|)",
      "(tell|teach) me (something |)about (MoE|mixture of experts)", "how does (MoE|a mixture of experts) work"]),
    ("You are welcome!",
     ["(thanks|thank you|many thanks|thx|cheers)( a lot| so much| very much|)( for (that|this|your help|the answer|helping)| strait| friend| model|)",
      "(that was|that is|it was) (great|good|helpful|nice|perfect|very good)( thanks| thank you|)", "(well done|good job|great|perfect|nice)( thanks| thank you|)"]),
    ("Goodbye! Come back any time.",
     ["(bye|goodbye|bye bye|see you|farewell|good night|so long|take care)( strait| friend| for now| then| later| model|)",
      "(I have to|I must|I need to|I will) (go|leave)( now| soon|)( bye| goodbye|)", "(talk|speak|see) (to |)you (later|soon|tomorrow)"]),
    ("I can add and subtract, repeat and reverse lists, write JSON, call a tool, count, say the alphabet and tell a story.",
     ["what (can|could) (you|I) (do|ask|ask you|try)( here| for me|)", "help( me|)", "(I need|give me|show me)( some|) help",
      "what (are you able to|do you know how to) do", "(what|which) (things|tasks|tricks) (can you do|do you know|are there)",
      "how (can|do) (you help me|I use you|I use this|this work)", "what are your (skills|tricks|abilities|commands)"]),
    ("Why did the token cross the strait? To get to the other slide.",
     ["(tell|give) me a( good| short| funny|) joke", "(say something|be) funny", "make me laugh( a bit|)", "(do you know|got) (a|any) (good |)jokes?( for me|)",
      "(a joke|another joke|joke)"]),
]
WORDS = """red blue green black white grey pink brown gold silver fox cat dog owl bear frog goat horse mouse lion tiger wolf fish bird
    tree leaf river stone rain snow wind cloud sun moon star sky sea lake hill sand fire ice rock grass bread milk apple pear plum lemon
    cake soup rice salt honey tea cup fork spoon plate table chair lamp door window house roof wall road bridge boat ship train car bike
    wheel bell book pen paper map key box bag coin ring hat coat shoe sock glove drum flute piano song dance king queen farmer baker
    pilot doctor child friend north south east west spring summer winter autumn day night morning one two three four big small old new
    fast slow warm cold round sweet happy quiet""".split()
NAMES = """Ana Ben Clara David Emma Felix Greta Hugo Ida Jonas Karla Leo Mia Nina Oscar Paula Quinn Rosa Sam Tara Uma Victor Wanda Yuri Zoe
    Alice Bob Carol Dan Eve Frank Grace Henry Iris Jack Kate Liam Maria Noah Olivia Peter Ruth Simon Tom Ella Max Lena Paul Anna John""".split()
CITIES = """Paris Rome Oslo Berlin Madrid London Vienna Prague Lisbon Dublin Athens Warsaw Cairo Tokyo Delhi Lima Boston Chicago Denver Seoul
    Sydney Toronto Zurich Geneva Milan Naples Porto Bergen Helsinki Riga Kyoto Nairobi Accra Dakar Quito Bogota Havana Moscow Kiev Beijing""".split() \
    + ["New York", "Cape Town", "San Diego", "Tel Aviv", "Hong Kong", "Los Angeles"]
TOPICS = """France|the moon|pasta|chess|football|the ocean|a computer|my garden|dinosaurs|music|the weather on Mars|gravity|bread|history|love|money|
    the stock market|Python|quantum physics|a good film|the best phone|Germany|my homework|a poem|cancer|the president|black holes|cars|shoes|
    the Roman empire|a cat|the capital of Spain|electricity|DNA|whales|coffee|taxes|a wedding|Shakespeare|the internet|happiness|time travel|
    volcanoes|a haiku|Linux|tomorrow|school|the universe|art|mathematics|a violin|Japan|dreams|fishing|the news|the law|my boss|chemistry""".replace("\n", "").split("|")
UNKNOWN = ["(what is|who is|where is|why is|when was|what about|what colour is|how big is|how old is) {topic}",
           "(tell me|write|say something|explain|I want to know more) about {topic}", "(write|give me|make) (a poem|an essay|a song|code|a recipe|a plan) (about|for|with) {topic}",
           "(how do I|how can I|can you|should I|please) (cook|fix|build|buy|learn|understand|sell|find|translate|draw|play|solve) {topic}",
           "(do you|why do people|who does not) (like|love|know|hate|want|remember) {topic}", "(is|was|are) {topic} (good|real|bad|old|expensive|important|near) ",
           "(what|who|which) (is|was) the (best|first|last|biggest|capital|colour|name|price|author) of {topic}", "translate {topic} (to|into) (French|German|Latin)",
           "(my|the|a|your) {word} (is|was|has|likes|and) (the|a|my|very|) {word}", "{word} {word} {word}", "{pseudo} {pseudo}", "{pseudo}", "{topic}",
           "what is {n} (times|x|*|/|divided by) {n}", "I (am|feel|want|like|have|need) {topic}", "{word}", "(where|when|why|how|what|who)", "{word} {pseudo} {word} {topic}",
           "wie (geht|ist|heisst) {topic}", "(ou est|qui est|quel est|donde esta) {topic}", "(yes|no|ok|maybe|sure|really|and then)( {word}|)", "{junk}"]
ANIMALS = "fox owl cat dog bear frog goat horse mouse lion tiger wolf".split()
STORIES = [
    "Once there was a small {a} who lived near a narrow strait. Each morning the {a} looked at the far shore and wondered what was there. One day a boat "
    "came by, and the old captain said: jump in. The water was wild, but the {a} held on. On the other side there was a garden full of pears. The {a} ate "
    "one, kept one for a friend, and came home at night, happy and a little wiser than before.",
    "A young {a} found a lamp in the sand. It was old and cold, but when the {a} polished it, it began to glow. All the animals of the hill came to see it. "
    "The {a} could have kept the light, yet the nights were long and the path was dark. So the {a} hung the lamp above the bridge. Since then nobody has "
    "lost the way, and everyone who crosses says thank you to the {a}.",
    "It rained for seven days, and the river rose. The {a} saw that the house of the mouse was in danger. There was no time to ask for help. The {a} carried "
    "stone after stone and built a wall, while the wind blew and the water climbed. On the eighth day the sun came out. The house was dry, the mouse made "
    "tea, and the {a} slept for a whole day and dreamed of the sea.",
]
OTHER = sorted(set(re.findall("[A-Za-z]+", " ".join([a for a, _ in CHAT] + STORIES + TOPICS + [FALLBACK]))))
SYSTEMS = ["You are a helpful assistant.", "You are a helpful assistant.", "You are strait.", "Be brief.", "Answer politely and in one sentence.",
           "You are a pirate. Talk like one.", "You are a careful assistant. Think before you answer. If you do not know the answer, say so."]
JSON_FIELDS = [["name", "age", "city"], ["name", "age"], ["name", "city"], ["name", "color"], ["item", "price"], ["item", "count", "color"], ["city", "temp"],
               ["animal", "name", "age"], ["title", "year"], ["name", "age", "city", "color"], ["id", "name"], ["name", "job"], ["user", "age", "id"]]


class Text:
    """A seeded source of exchanges. `banned` holds the keys of the held-out prompts."""

    def __init__(self, seed, banned=frozenset(), share=None):
        self.r, self.banned, self.share = random.Random(seed), banned, share or PHASES[0].share

    def pseudo(self):
        syllable = lambda: self.r.choice("b c d f g h j k l m n p r s t v w z br cl dr gr st tr sh th".split()) + self.r.choice("a e i o u ai ea ou".split())
        return "".join(syllable() for _ in range(self.r.randint(1, 3))) + self.r.choice(["", "", "n", "r", "s", "t", "l", "m", "k", "nd", "x"])

    def name(self):
        return self.r.choice(NAMES) if self.r.random() < .65 else self.pseudo().capitalize()

    def city(self):
        return self.r.choice(CITIES) if self.r.random() < .65 else self.pseudo().capitalize()

    def junk(self):
        pool = self.r.choice(["abcdefghijklmnopqrstuvwxyz ", "!?.,;:-_#+*/=()[]{}<>'\"$%&@ ", "äöüßéèñçøåłžαβγдежзий ", "你好世界天気東京今日 🙂🚀🌍", "ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789"])
        return "".join(self.r.choice(pool) for _ in range(self.r.randint(2, 14))).strip() or "?"

    def expand(self, pattern):
        while (m := re.search(r"\(([^()]*)\)", pattern)):
            pattern = pattern[:m.start()] + self.r.choice(m[1].split("|")) + pattern[m.end():]
        fill = {"topic": lambda: self.r.choice(TOPICS), "word": lambda: self.r.choice(WORDS), "n": lambda: str(self.r.randint(0, 99)),
                "pseudo": self.pseudo, "junk": self.junk, "name": self.name, "city": self.city, "animal": lambda: self.r.choice(ANIMALS)}
        return re.sub(r"\{(\w+)\}", lambda m: fill[m[1]]() if m[1] in fill else m[0], pattern).strip()

    def noise(self, text, ends=("?", "", ".", "!")):
        """Case, punctuation and politeness: what does not change the answer."""
        r = self.r
        if r.random() < .12: text = r.choice(["please ", "hey ", "ok, ", "so, ", "now ", "well, ", "hey, "]) + text
        if r.random() < .6: text = text[0].upper() + text[1:]
        text += r.choice(ends)
        if r.random() < .08: text = text.rstrip("?.!") + r.choice([" please", ", please", " now", " please?", "!!", "??", " "])
        if r.random() < .08: text = text.lower()
        if r.random() < .03: text = text.upper()
        return text

    # One exchange each ------------------------------------------------------------------------------------------------
    def chat(self):
        answer, patterns = self.r.choice(CHAT)
        return self.plain(self.noise(self.expand(self.r.choice(patterns)), ("?", "", ".", "!", "")), answer)

    def unknown(self):
        return self.plain(self.noise(self.expand(self.r.choice(UNKNOWN))), FALLBACK)

    def arithmetic(self):
        r = self.r
        a, b = (r.randint(0, 9) if r.random() < .15 else r.randint(0, 99) for _ in "ab")
        if r.random() < .05:
            a = r.randint(100, 9999)
            if r.random() < .5: a, b = b, a
        plus = r.random() < .5
        ask = "(what is|what's|compute|calculate|how much is|work out|solve|) "
        pattern = r.choice([ask + "{a}( + |+){b}", "{a}(+|+| + ){b}( =|=)", ask + "{a} plus {b}", "add {a} (and|to) {b}", "(what is |)the sum of {a} and {b}"] if plus else
                           [ask + "{a}( - |-){b}", "{a}(-|-| - ){b}( =|=)", ask + "{a} minus {b}", "(subtract|take) {b} from {a}", "(what is |)the difference of {a} and {b}"])
        text = self.expand(pattern.replace("{a}", str(a)).replace("{b}", str(b)))
        text = text if text[-1] == "=" else self.noise(text, ("?", "?", "", "."))
        answer = TOO_BIG if max(a, b) > 99 else f"{a} + {b} = {a + b}" if plus else f"{a} - {b} = {a - b}"     # the sum in one form first, then its answer
        return self.plain(text, answer, f"{min(a, b)}+{max(a, b)}" if plus else f"{a}-{b}")

    def items(self):
        r, kind, n = self.r, self.r.random(), self.r.choice([1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6, 6, 7, 9])
        one = lambda k: r.choice(WORDS) if k < .6 else r.choice(OTHER) if k < .72 else str(r.randint(0, 9)) if k < .80 else str(r.randint(10, 99)) if k < .86 else r.choice("abcdefghijklmnopqrstuvwxyz") if k < .90 else r.choice((self.pseudo, self.name, self.city))().split()[-1]
        if kind < .08: return [r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(max(n, 2))]
        if kind < .15: return [str(r.randint(0, 9)) for _ in range(max(n, 2))]
        return [one(r.random() if kind > .5 else .5 * r.random()) for _ in range(n)]

    def copy(self):
        text = self.r.choice([" ", " ", " ", ", "]).join(self.items())
        if self.r.random() < .1: text = text.capitalize() + self.r.choice(".!?")
        return self.plain(self.expand("(Repeat|Copy|Say|Echo|Repeat after me|Repeat this|Please repeat|repeat|copy|say|Now repeat|Repeat|Repeat): ") + " " + text, text)

    def reverse(self):
        items, sep = self.items(), self.r.choice([" ", " ", " ", ", "])
        if self.r.random() < .15: items, sep = list(str(self.r.randint(10, 9999999))), ""
        ask = self.expand("(Reverse|Reverse this|Say backwards|Please reverse|Reverse the list|Reverse the order|reverse|Now reverse|Turn around|Reverse|Reverse)")
        return self.plain(f"{ask}: {sep.join(items)}", sep.join(reversed(items)))

    def json(self):
        r = self.r
        value = {"name": self.name, "user": self.name, "city": self.city, "color": lambda: r.choice(WORDS[:10]), "item": lambda: r.choice(WORDS[44:80]), "animal": lambda: r.choice(ANIMALS),
                 "job": lambda: r.choice(["baker", "pilot", "doctor", "farmer", "king", "queen", "cook", "teacher"]), "title": lambda: r.choice(WORDS + NAMES), "age": lambda: r.randint(1, 99),
                 "price": lambda: r.randint(1, 999), "count": lambda: r.randint(0, 99), "temp": lambda: r.randint(0, 40), "year": lambda: r.randint(1900, 2030), "id": lambda: r.randint(1, 9999)}
        fields = list(r.choice(JSON_FIELDS))
        if r.random() < .2: fields = r.sample(list(value), r.randint(1, 4))
        if r.random() < .2: r.shuffle(fields)
        made = {f: value[f]() for f in fields}
        assign, between = r.choice([" ", " ", " ", "=", ": "]), r.choice([", ", ", ", ", ", " and "] if len(fields) < 3 else [", "])
        ask = self.expand("(Give me JSON for|Give me JSON with|JSON for|JSON:|Write JSON for|Make JSON with|Make a JSON object with|Write a JSON object with|give me json for|Please give me JSON for|Return JSON for|Now give me JSON for)")
        return self.plain(ask + " " + between.join(f"{k}{assign}{v}" for k, v in made.items()) + r.choice(["", "", "", "."]), json.dumps(made))

    def count(self):
        r = self.r
        a, n = (1 if r.random() < .3 else r.randint(0, 90)), r.choice([r.randint(2, 12), r.randint(8, 40)])
        if r.random() < .1: a, n = 1, r.randint(40, 99)
        b = min(a + n, 100)
        to = self.expand("(count|count|please count|count up|can you count|now count)")
        text = f"{to} from {a} to {b}" if a != 1 or r.random() < .5 else f"{to} to {b}"
        return self.plain(self.noise(text, ("", "", ".", "!")), " ".join(map(str, range(a, b + 1))), f"count {a} {b}")

    def alphabet(self):
        ask = self.expand("(write|say|recite|print|list|give me|show me|tell me|type|write down|spell) (the|the whole|the full|the English|the entire) alphabet(| for me| from a to z| again| in order)")
        return self.plain(self.noise(ask, ("", "", ".", "!")), " ".join("abcdefghijklmnopqrstuvwxyz"))

    def story(self):
        animal = self.r.choice(ANIMALS)
        ask = self.expand("(tell me|write|tell|give me|write me|read me|I want|make up|invent) (a|a short|a little|a nice|a long|another) story")
        if self.r.random() < .85: ask += " " + self.expand("(about|with|of) (a|the|one)") + " " + animal
        else: animal = "fox"
        return self.plain(self.noise(ask, ("", "", ".", "!")), STORIES[ANIMALS.index(animal) % 3].replace("{a}", animal))

    def tool(self):
        """Calls, answers made from results, and refusals where the tool is missing."""
        r, kind = self.r, self.r.random()
        name = r.choice(["get_weather", "get_time"])
        city, other = self.city(), self.city()
        if r.random() < .1: city, other = city.lower(), other.lower()
        asks = {"get_weather": "(what is|what's|how is|tell me|show me|give me|check|)( the|) weather(| like| today| now) in {c}(| today| now| right now)",
                "get_time": "(what time is it|what is the time|what's the time|tell me the time|what time do they have|how late is it|give me the time|check the time|time)(| now) in {c}(| now| right now)"}
        extra = [self.function(n) for n in r.sample(["get_weather", "get_time", "search", "send_mail", "get_news", "open_door"], r.randint(0, 2)) if n != name]
        tools = extra + [self.function(name)]
        r.shuffle(tools)
        if kind < .18:                                                             # asked by name, with or without a list
            fn, arg = (name, "city") if r.random() < .6 else (self.pseudo() + r.choice(["", "_" + self.pseudo()]), r.choice(["query", "name", "id", "city", "word", self.pseudo()]))
            what = city if arg == "city" else r.choice([self.pseudo(), r.choice(WORDS), self.name()])
            tools = [self.function(fn, arg)] + extra if fn != name else tools if r.random() < .5 else None
            ask = self.expand("(call|please call|use|run|now call|Call|Call|Use)") + f" {fn} {r.choice(['for', 'for', 'with', 'on', 'with ' + arg, 'for ' + arg])} {what}"
            return self.made(ask + r.choice(["", "", ".", "!"]), [(fn, {arg: what})], None, "", tools)
        ask = self.noise(self.expand(asks[name]), ("?", "?", "", ".")).replace("{C}", "{c}")
        if kind < .33: return self.plain(ask.replace("{c}", city), NO_TOOL[name], tools=extra or None)
        n_calls = 2 if r.random() < .15 and other != city else 1
        cities = [city, other][:n_calls]
        calls = [(name, {"city": c}) for c in cities]
        results, facts = zip(*(self.result(name, c) for c in cities))
        return self.made(ask.replace("{c}", " and ".join(cities)), calls, results if kind > .6 else None, "It is " + " and ".join(facts) + ".", tools)

    @staticmethod
    def function(name, arg=None):
        args = [arg] if arg else {"get_weather": ["city"], "get_time": ["city"], "search": ["query"], "send_mail": ["to", "text"], "get_news": ["topic"], "open_door": ["room"]}[name]
        return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {a: {"type": "string"} for a in args}, "required": args}}}

    def result(self, name, city):
        r = self.r
        if name == "get_time":
            clock = f"{r.randint(0, 23):02}:{r.randint(0, 59):02}"
            return json.dumps(r.choice([{"time": clock}, {"time": clock}, {"city": city, "time": clock}])), f"{clock} in {city}"
        temp = r.choice([r.randint(-15, 40), r.randint(0, 35), r.randint(0, 350) / 10])
        made = r.choice([{"temp_c": temp}, {"temp_c": temp}, {"city": city, "temp_c": temp}, {"temp_c": temp, "sky": r.choice(["sunny", "cloudy", "rain", "clear"])}])
        return json.dumps(made, separators=r.choice([(", ", ": "), (", ", ": "), (",", ":")])), f"{temp} degrees in {city}"

    @staticmethod
    def plain(ask, answer, key=None, tools=None):
        return key or normal(ask), [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}], tools

    @staticmethod
    def made(ask, calls, results, answer, tools):
        messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": None, "tool_calls": [
            {"id": f"call_{i}", "type": "function", "function": {"name": n, "arguments": json.dumps(a)}} for i, (n, a) in enumerate(calls)]}]
        if results:
            messages += [{"role": "tool", "tool_call_id": f"call_{i}", "content": c} for i, c in enumerate(results)] + [{"role": "assistant", "content": answer}]
        return normal(ask), messages, tools

    # Conversations ----------------------------------------------------------------------------------------------------
    def exchange(self, task=None):
        while True:
            made = getattr(self, task or self.r.choices(list(self.share), self.share.values())[0])()
            if made[0] not in self.banned: return made

    def conversation(self, last=None, turns=None):
        """One to five exchanges, perhaps after a system message; the tools are those that the tool exchanges need."""
        r = self.r
        turns = turns or r.choice([1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5])
        system = []
        if r.random() < .25:
            system = [{"role": "system", "content": r.choice(SYSTEMS) if r.random() < .6 else " ".join(self.expand(r.choice(UNKNOWN)) for _ in range(r.randint(1, 4)))}]
        messages, tools = [], None
        if last and turns == 1: turns, done = 1, [last]
        else: done = [self.exchange() for _ in range(turns - bool(last))] + ([last] if last else [])
        tools = next((t for _, _, t in reversed(done) if t), None) if not last else last[2]
        names = {t["function"]["name"] for t in tools or []}
        for i, (_, m, t) in enumerate(done):
            needs = {c["function"]["name"] for x in m for c in x.get("tool_calls") or []}
            refuses = next((n for n, a in NO_TOOL.items() if m[-1]["content"] == a), None)
            if i < len(done) - 1 or not last:
                if (t and not needs <= names) or (needs and not t and names) or refuses in names: continue
            messages += m
        if not messages: return self.conversation(last)
        if not last and not tools and r.random() < .08: tools = [self.function(n) for n in ("search", "send_mail")][:r.randint(1, 2)]
        return system + messages, tools


def normal(text):
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split()) or text


# Held out: (task, how many, number of exchanges in the conversation).
PLAN = [("chat", 30, 1), ("arithmetic", 40, 1), ("copy", 20, 1), ("reverse", 25, 1), ("json", 25, 1), ("tool", 40, 1), ("unknown", 15, 1),
        ("count", 10, 1), ("alphabet", 3, 1), ("story", 6, 1), ("multi", 20, 3)]


def make_heldout(seed):
    text, items, keys = Text(seed), [], set()
    for task, count, turns in PLAN:
        n = 0
        while n < count:
            exchange = text.exchange(None if task == "multi" else task)
            if exchange[0] in keys or len(exchange[0]) < 9 and task in ("chat", "unknown"): continue
            keys.add(exchange[0])
            messages, tools = text.conversation(exchange, turns)
            answer = messages.pop()
            kind = "tool answer" if messages[-1]["role"] == "tool" else "tool call" if answer.get("tool_calls") else "tool missing" if task == "tool" else task
            items.append({"task": kind if task == "tool" else task, "messages": messages, **({"tools": tools} if tools else {}), "expected": answer_text(answer)})
            n += 1
    return items, keys


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer and chat template

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
MARKERS = ["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"]
SPECIAL = [BOS, EOS, PAD, USER, ASSISTANT]
VOCAB = 768

TEMPLATE = """{%- if add_generation_prompt is not defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set st = namespace(system='', after_tool=false) %}
{%- for m in messages if m['role'] == 'system' %}
{%- set st.system = st.system ~ ('\\n\\n' if st.system else '') ~ m['content'] %}
{%- endfor %}
{{- bos_token ~ st.system }}
{%- if tools %}
{{- ('\\n\\n' if st.system else '') ~ 'Tools: ' }}
{%- for t in tools %}
{{- ('' if loop.first else ', ') ~ t['function']['name'] ~ '(' }}
{%- if t['function']['parameters'] and t['function']['parameters']['properties'] %}
{%- for p in t['function']['parameters']['properties'] %}
{{- ('' if loop.first else ', ') ~ p }}
{%- endfor %}
{%- endif %}
{{- ')' }}
{%- endfor %}
{%- endif %}
{%- for m in messages %}
{%- if m['role'] == 'user' %}
{{- '<｜User｜>' ~ m['content'] }}
{%- set st.after_tool = false %}
{%- elif m['role'] == 'tool' %}
{{- '<｜tool▁output▁begin｜>' ~ m['content'] ~ '<｜tool▁output▁end｜>' }}
{%- set st.after_tool = true %}
{%- elif m['role'] == 'assistant' %}
{%- if not st.after_tool %}{{ '<｜Assistant｜>' }}{% endif %}
{%- if m['content'] %}{{ m['content'] }}{% endif %}
{%- if m['tool_calls'] %}
{{- '<｜tool▁calls▁begin｜>' }}
{%- for c in m['tool_calls'] %}
{{- '<｜tool▁call▁begin｜>' ~ c['function']['name'] ~ '<｜tool▁sep｜>' }}
{%- if c['function']['arguments'] is string %}{{ c['function']['arguments'] }}{% else %}{{ c['function']['arguments'] | tojson }}{% endif %}
{{- '<｜tool▁call▁end｜>' }}
{%- endfor %}
{{- '<｜tool▁calls▁end｜>' }}
{%- endif %}
{{- eos_token }}
{%- set st.after_tool = false %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not st.after_tool %}{{ '<｜Assistant｜>' }}{% endif %}"""

_env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
_env.filters["tojson"] = lambda v: json.dumps(v, ensure_ascii=False)
_template = _env.from_string(TEMPLATE)


def render(messages, tools=None, add_generation_prompt=False):
    return _template.render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, bos_token=BOS, eos_token=EOS)


def answer_text(message):
    return render([message]).removeprefix(BOS + ASSISTANT).removesuffix(EOS)


def train_tokenizer(corpus):
    """Byte-level BPE. Digits stand alone, and a space is never part of a word: a word has the same tokens wherever it stands."""
    words = r"[\p{L}\p{M}]+|[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), pre_tokenizers.Split(Regex(words), "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIAL + MARKERS, show_progress=False,
                                                        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tok.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, 0)])
    made = json.loads(tok.to_str())
    for token in made["added_tokens"]:
        token["special"] = token["content"] in SPECIAL          # tool markers are text that a parser must see
    return Tokenizer.from_str(json.dumps(made))


class Stream:
    """Packed rows of conversations: tokens, and the weight of each as a target (answers only, up to a small rest)."""

    def __init__(self, text, tok, sums):
        self.text, self.tok, self.sums, self.ids, self.weights = text, tok, sums, [], []
        self.begin = {tok.token_to_id(ASSISTANT), tok.token_to_id("<｜tool▁output▁end｜>")}
        self.equals, self.again, self.end = tok.token_to_id("="), tok.token_to_id("<｜tool▁output▁begin｜>"), tok.token_to_id(EOS)

    def refill(self):
        made = [render(*self.text.conversation()) for _ in range(256)]
        for enc in self.tok.encode_batch(made, add_special_tokens=False):
            ids, weights, at = enc.ids, [.03] * len(enc.ids), None
            for i, t in enumerate(ids):
                if t in self.begin: at = i + 1
                elif t == self.again: at = None
                elif t == self.end and at is not None:
                    weights[at:i + 1] = [(4 / (i + 1 - at)) ** .5] * (i + 1 - at)      # short answers count more for each token
                    if self.sums:
                        weights[at:i + 1] = [max(w, .25) for w in weights[at:i]] + [1.]
                        if self.equals in ids[at:i]:
                            first = at + ids[at:i].index(self.equals) + 1
                            weights[first:i + 1] = [self.sums] * (i + 1 - first)
                    at = None
            self.ids += ids
            self.weights += weights

    def batch(self, rows, length):
        need = rows * (length + 1)
        while len(self.ids) < need: self.refill()
        ids, weights = torch.tensor(self.ids[:need]).view(rows, -1), torch.tensor(self.weights[:need]).view(rows, -1)
        self.ids, self.weights = self.ids[need:], self.weights[need:]
        return ids[:, :-1], ids[:, 1:], weights[:, 1:]


# ---------------------------------------------------------------------------------------------------------------------
# Model

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02,
    "model_type": "deepseek_v3", "moe_layer_freq": 1, "tie_word_embeddings": True, "use_cache": True, "pretraining_tp": 1, "ep_size": 1,
    "aux_loss_alpha": 0.001, "first_k_dense_replace": 1, "hidden_size": 128, "intermediate_size": 384, "kv_lora_rank": 64,
    "max_position_embeddings": 4096, "moe_intermediate_size": 96, "n_group": 1, "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 4, "num_key_value_heads": 4, "num_nextn_predict_layers": 0,
    "q_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000,
    "routed_scaling_factor": 1.5, "scoring_func": "sigmoid", "seq_aux": True, "topk_group": 1, "topk_method": "noaux_tc",
    "transformers_version": "4.33.1", "v_head_dim": 32, "vocab_size": VOCAB, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1,
}
C = argparse.Namespace(**CONFIG)


class Norm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, 1e-6)


def linear(n_in, n_out):
    return nn.Linear(n_in, n_out, bias=False)


def rope(x, position):
    """Rotates the pairs (2i, 2i + 1) of the last dimension; x is [..., T, d]."""
    d = x.shape[-1]
    angle = position[:, None].float() * C.rope_theta ** (-torch.arange(0, d, 2) / d)
    cos, sin, even, odd = angle.cos(), angle.sin(), x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        h, self.d = C.num_attention_heads, C.qk_nope_head_dim + C.qk_rope_head_dim
        self.q_a_proj, self.q_a_layernorm = linear(C.hidden_size, C.q_lora_rank), Norm(C.q_lora_rank)
        self.q_b_proj = linear(C.q_lora_rank, h * self.d)
        self.kv_a_proj_with_mqa, self.kv_a_layernorm = linear(C.hidden_size, C.kv_lora_rank + C.qk_rope_head_dim), Norm(C.kv_lora_rank)
        self.kv_b_proj = linear(C.kv_lora_rank, h * (C.qk_nope_head_dim + C.v_head_dim))
        self.o_proj = linear(h * C.v_head_dim, C.hidden_size)

    def forward(self, x, cache=None):
        """`cache` is a list that holds the latent rows and rotated keys of the tokens before x."""
        b, t, h, past = *x.shape[:2], C.num_attention_heads, cache[0].shape[1] if cache else 0
        position = torch.arange(past, past + t)
        q_nope, q_rope = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(b, t, h, self.d).transpose(1, 2).split((C.qk_nope_head_dim, C.qk_rope_head_dim), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((C.kv_lora_rank, C.qk_rope_head_dim), -1)
        latent, k_rope = self.kv_a_layernorm(latent), rope(k_rope, position)
        if cache is not None:
            if past: latent, k_rope = torch.cat((cache[0], latent), 1), torch.cat((cache[1], k_rope), 1)
            cache[:] = latent, k_rope
        k_nope, v = self.kv_b_proj(latent).view(b, past + t, h, -1).transpose(1, 2).split((C.qk_nope_head_dim, C.v_head_dim), -1)
        q = torch.cat((q_nope, rope(q_rope, position)), -1)
        k = torch.cat((k_nope, k_rope[:, None].expand(-1, h, -1, -1)), -1)
        if self.training and t <= 512:                                      # plain bf16 products are faster than the fused kernel here
            mask = torch.full((t, t), -1e9).triu(1)
            score = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=self.d ** -.5)
            out = (score.softmax(-1) @ v.flatten(0, 1)).view(b, h, t, -1)
        else:
            v = F.pad(v, (0, self.d - C.v_head_dim))                        # equal widths let torch take the fused kernel
            out = F.scaled_dot_product_attention(q, k, v, is_causal=not past)[..., :C.v_head_dim]   # a cached call brings one token
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(C.hidden_size, width), linear(C.hidden_size, width), linear(width, C.hidden_size)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Moe(nn.Module):
    def __init__(self):
        super().__init__()
        e, m = C.n_routed_experts, C.moe_intermediate_size
        self.gate, self.shared_experts = linear(C.hidden_size, e), Mlp(m * C.n_shared_experts)
        self.experts = nn.ModuleList(Mlp(m) for _ in range(e))
        self.register_buffer("bias", torch.zeros(e))
        self.load = torch.zeros(e)

    def forward(self, x):
        flat = x.reshape(-1, C.hidden_size)
        with torch.autocast("cpu", enabled=False): score = F.linear(flat.float(), self.gate.weight).sigmoid()
        chosen = (score.detach() + self.bias).topk(C.num_experts_per_tok, -1)[1]
        weight = score.gather(1, chosen)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20) * C.routed_scaling_factor
        order = chosen.flatten().argsort()
        counts = chosen.flatten().bincount(minlength=C.n_routed_experts)
        if self.training: self.load += counts
        token = order // C.num_experts_per_tok
        rows = flat.index_select(0, token).split(counts.tolist())
        if self.training:                                   # few different sizes: torch prepares a kernel for each one that it meets
            done = [expert(F.pad(r, (0, 0, 0, -len(r) % 64)))[:len(r)] for expert, r in zip(self.experts, rows)]
        else:
            done = [expert(r) for expert, r in zip(self.experts, rows)]
        done = torch.cat(done) * weight.flatten()[order, None]
        return self.shared_experts(flat).float().index_add(0, token, done).view_as(x)

    def balance(self, rate):
        """Loss-free balancing: busy experts become less likely to be chosen."""
        self.bias += rate * (self.load.mean() - self.load).sign()
        self.load.zero_()


class Layer(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(C.hidden_size), Norm(C.hidden_size)
        self.self_attn, self.mlp = Attention(), Mlp(C.intermediate_size) if index < C.first_k_dense_replace else Moe()

    def forward(self, x, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(C.vocab_size, C.hidden_size)
        self.layers, self.norm = nn.ModuleList(Layer(i) for i in range(C.num_hidden_layers)), Norm(C.hidden_size)
        for name, p in self.named_parameters():
            if p.dim() == 2: nn.init.normal_(p, std=.02 if "embed" in name else p.shape[1] ** -.5 * (.2 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1))

    def forward(self, ids, caches=None):
        x = self.embed_tokens(ids)
        for i, layer in enumerate(self.layers): x = layer(x, caches[i] if caches else None)
        return F.linear(self.norm(x), self.embed_tokens.weight)

    def moes(self):
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, Moe)]

    def tensors(self):
        """The tensors under their Hugging Face names, in bf16 (the routing bias in f32)."""
        made = {"model." + n: p.detach().bfloat16().contiguous() for n, p in self.named_parameters()}
        for i, layer in enumerate(self.layers):
            if isinstance(layer.mlp, Moe): made[f"model.layers.{i}.mlp.gate.e_score_correction_bias"] = layer.mlp.bias.clone()
        return made

    def load(self, tensors):
        state = {n.removeprefix("model.").replace("gate.e_score_correction_bias", "bias"): t.float() for n, t in tensors.items()}
        self.load_state_dict(state)
        return self.eval()


@torch.no_grad()
def greedy(model, ids, limit=512):
    """The ids up to EOS, one token at a time over a latent cache."""
    caches, out, step = [[] for _ in model.layers], [], torch.tensor([ids])
    while len(out) < limit:
        token = int(model(step, caches)[0, -1].argmax())
        if token == C.eos_token_id: break
        out.append(token)
        step = torch.tensor([[token]])
    return out


def evaluate(model, tok, items):
    """Exact matches for each task: {task: (right, all)}, and the wrong ones."""
    score, wrong = {}, []
    for item in items:
        prompt = tok.encode(render(item["messages"], item.get("tools"), True), add_special_tokens=False).ids
        got = tok.decode(greedy(model, prompt), skip_special_tokens=True)
        right, n = score.get(item["task"], (0, 0))
        score[item["task"]] = right + (got == item["expected"]), n + 1
        if got != item["expected"]: wrong.append((item["task"], item["messages"][-1]["content"], item["expected"], got))
    return score, wrong


# ---------------------------------------------------------------------------------------------------------------------
# Training

class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal by five Newton-Schulz steps; equal shapes are done together."""

    def __init__(self, params, lr, momentum=.95, decay=.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, decay=decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]: shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                for p in params: self.state[p].setdefault("m", torch.zeros_like(p)).lerp_(p.grad, 1 - group["momentum"])
                x = torch.stack([p.grad.lerp(self.state[p]["m"], group["momentum"]) for p in params])
                tall = shape[0] > shape[1]
                x = x.mT if tall else x
                x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
                x = x.mT.float() if tall else x.float()
                for p, u in zip(params, x):
                    p.mul_(1 - group["lr"] * group["decay"]).add_(u, alpha=-group["lr"] * max(1, shape[0] / shape[1]) ** .5)


@dataclasses.dataclass
class Phase:
    """`lengths` are (until this part of the steps, tokens in a row); `sums`, if not 0, is the weight of a sum's digits."""
    steps: int
    lr: float
    adam_lr: float
    lengths: tuple
    sums: float
    share: dict


# First everything, in short rows that are cheap; then longer rows, so that it keeps its head late in a conversation, and more of what is learned last.
PHASES = [
    Phase(7500, .008, .003, ((.6, 256), (.88, 512), (1, 2048)), 0.,
          {"chat": 13, "unknown": 9, "arithmetic": 28, "copy": 9, "reverse": 13, "json": 9, "tool": 13, "count": 3, "alphabet": 1, "story": 2}),
    Phase(800, .004, .0015, ((.1, 512), (.35, 1024), (.85, 2048), (1, 512)), 2.,
          {"chat": 12, "unknown": 9, "arithmetic": 28, "copy": 8, "reverse": 11, "json": 8, "tool": 11, "count": 8, "alphabet": 1, "story": 7}),
]
STEP_TOKENS = 2048


def train(phase, model, tok, text, items, check):
    """One phase; returns the loss of each step and the minutes."""
    stream, curve, start = Stream(text, tok, phase.sums), [], time.time()
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and "mlp.gate.weight" not in n]
    ids = {id(p) for p in matrices}
    optimizers = [Muon(matrices, phase.lr), torch.optim.AdamW([p for p in model.parameters() if id(p) not in ids], phase.adam_lr, (.9, .98), weight_decay=0)]
    model.train()
    for step in range(phase.steps):
        done = step / phase.steps
        scale = min(1, (step + 1) / 50) * (.5 + .5 * math.cos(math.pi * done)) + .002
        length = next(length for until, length in phase.lengths if done < until)                    # short rows are cheaper
        x, y, w = stream.batch(STEP_TOKENS // length, length)
        with torch.autocast("cpu", torch.bfloat16): logits = model(x)
        loss = (F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction="none") * w.flatten()).sum() / w.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        for optimizer, lr in zip(optimizers, (phase.lr, phase.adam_lr)):
            optimizer.param_groups[0]["lr"] = lr * scale
            optimizer.step()
        model.zero_grad()
        for moe in model.moes():
            load = moe.load / moe.load.sum()
            moe.balance(.001 if done < .9 else 0)
        curve.append(loss.item())
        minutes = (time.time() - start) / 60
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} loss {np.mean(curve[-50:]):.4f} minutes {minutes:.1f} tok/s {(step + 1) * STEP_TOKENS / minutes / 60:.0f} load {load.min():.3f}..{load.max():.3f}", flush=True)
        if (step + 1) % check == 0:
            model.eval()
            score, wrong = evaluate(model, tok, items[::3])
            model.train()
            print("   ", {k: f"{a}/{n}" for k, (a, n) in score.items()}, wrong[:6], flush=True)
    model.load(model.tensors())                             # what is judged and trained further is what is written: rounded to bf16
    return curve, minutes


# ---------------------------------------------------------------------------------------------------------------------
# What is written

def write(seed, model, tok, curves, minutes, score, wrong):
    OUT.mkdir(parents=True, exist_ok=True)
    put = lambda name, value: (OUT / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    put("config.json", CONFIG)
    put("generation_config.json", {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.3, "top_p": 0.95,
                                   "transformers_version": CONFIG["transformers_version"]})
    put("tokenizer_config.json", {"add_bos_token": True, "add_eos_token": False, "bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": None,
                                  "clean_up_tokenization_spaces": False, "model_max_length": C.max_position_embeddings,
                                  "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE})
    tok.save(str(OUT / "tokenizer.json"), pretty=False)
    save_file(model.tensors(), OUT / "model.safetensors", metadata={"format": "pt"})
    (OUT / "model.safetensors").chmod(0o644)
    rows, before = [], 0
    for number, curve in enumerate(curves, 1):
        rows += [f"| {number} | {i} | {(before + i) * STEP_TOKENS / 1e6:.1f} | {np.mean(curve[i - 200:i]):.4f} |" for i in range(200, len(curve) + 1, 200)]
        before += len(curve)
    parameters, all_right = sum(t.numel() for t in model.tensors().values()), sum(a for a, _ in score.values())
    (OUT / "TRAINING.md").write_text(f"""# How the demo model was made

    python scripts/train_demo.py --seed {seed}

A tiny DeepSeek-V3-style model: multi-head latent attention, sigmoid routing with a balancing bias, one shared expert. It was trained on one CPU core in
{minutes:.0f} minutes on {before * STEP_TOKENS / 1e6:.1f} M tokens of text that the script makes itself from seed {seed}; nothing was downloaded. It knows a few tricks, and nothing about the world.

| | |
|---|---|
| parameters | {parameters:,} ({(OUT / "model.safetensors").stat().st_size:,} bytes in bf16, the routing bias in f32) |
| layers | {C.num_hidden_layers}, the first dense (width {C.intermediate_size}), hidden {C.hidden_size} |
| attention | {C.num_attention_heads} heads, query rank {C.q_lora_rank}, latent {C.kv_lora_rank}, head {C.qk_nope_head_dim} + {C.qk_rope_head_dim} rope, value {C.v_head_dim} |
| experts | {C.n_routed_experts}, {C.num_experts_per_tok} for a token, and {C.n_shared_experts} shared, width {C.moe_intermediate_size}, routed x{C.routed_scaling_factor} |
| vocabulary | {C.vocab_size}: byte-level BPE, digits and spaces stand alone; embedding and head are tied |
| optimizer | Muon for matrices, AdamW for the rest, cosine to zero; products in bf16, weights in f32; {STEP_TOKENS} tokens a step |
""" + "".join(f"| phase {i} | {p.steps} steps, learning rates {p.lr} and {p.adam_lr}, rows of {', then '.join(str(n) for _, n in p.lengths)} tokens, shares {p.share} |\n" for i, p in enumerate(PHASES, 1)) + f"""
A row is filled with whole conversations one after the other, and attention is not reset between them.

## Held-out prompts

Greedy answers from the bf16 weights in f32, exact match of the whole answer. No prompt occurs in training; for a sum, neither does the sum in other words.
The prompts are in `tests/demo/heldout.json`.

| task | right | of |
|---|---|---|
""" + "\n".join(f"| {task} | {a} | {n} |" for task, (a, n) in score.items()) + f"\n| **all** | **{all_right}** | **{len(wrong) + all_right}** |\n\n"
        + ("Wrong: " + "; ".join(f"`{ask}` gives `{got}`, not `{want}`" for _, ask, want, got in wrong) + ".\n\n" if wrong else "")
        + "## Loss\n\nMean of the weighted loss: each token of an answer by the inverse root of the answer's length, all other text by 0.03; in phase 2 a sum's "
        f"digits by {PHASES[1].sums} and the end of every answer by 1, so that the two phases cannot be compared.\n\n| phase | step | M tokens in all | loss |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")


def verify(count=60):
    """Compares what was written with transformers: template, logits and greedy answers. Notes the result in TRAINING.md."""
    import transformers
    items, tok = json.loads(HELDOUT.read_text()), Tokenizer.from_file(str(OUT / "tokenizer.json"))
    ours = Model().load(load_file(OUT / "model.safetensors"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(OUT, dtype=torch.float32, attn_implementation="eager").eval()
    auto = transformers.AutoTokenizer.from_pretrained(OUT)
    worst, same = 0., 0
    for i, item in enumerate(items):
        text = render(item["messages"], item.get("tools"), True)
        assert text == auto.apply_chat_template(item["messages"], tools=item.get("tools"), add_generation_prompt=True, tokenize=False), item
        ids = tok.encode(text, add_special_tokens=False).ids
        assert ids == auto(text, add_special_tokens=False).input_ids, text
        if i % (len(items) // count): continue
        with torch.no_grad():
            answer = greedy(ours, ids)
            whole = torch.tensor([ids + answer])
            worst = max(worst, (ours(whole) - theirs(whole).logits).abs().max().item())
            made = theirs.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=512, pad_token_id=2)[0, len(ids):].tolist()
        same += made == answer + [C.eos_token_id]
    compared = len(range(0, len(items), len(items) // count))
    assert worst < 1e-3 and same == compared, (worst, same, compared)
    note = (f"\n## Checked against transformers {transformers.__version__}\n\n{compared} held-out prompts, f32: all greedy answers equal, logits within {worst:.1e} "
            f"(prompt and answer). Its chat template and tokenizer give the same text and ids for all {len(items)} prompts.\n")
    page = OUT / "TRAINING.md"
    page.write_text(page.read_text().split("\n## Checked against")[0] + note)
    print(note)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--check", type=int, default=1000, help="steps between looks at a third of the held-out prompts")
    parser.add_argument("--verify", action="store_true", help="compare what was written with transformers, train nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)                                # at this size more threads are slower
    if args.verify: return verify()
    items, banned = make_heldout(args.seed + 1)
    HELDOUT.parent.mkdir(parents=True, exist_ok=True)
    HELDOUT.write_text("[\n" + ",\n".join(json.dumps(i, ensure_ascii=False) for i in items) + "\n]\n")
    sample = Text(args.seed + 2, banned)
    tok = train_tokenizer([m["content"] for _ in range(20000) for m in sample.conversation()[0] if m["content"]] + [" ".join(WORDS + NAMES + CITIES)] * 300)
    torch.manual_seed(args.seed)
    model, curves, minutes = Model(), [], 0
    for i, phase in enumerate(PHASES):
        curve, took = train(phase, model, tok, Text(args.seed + 100 * i, banned, phase.share), items, args.check)
        curves, minutes = curves + [curve], minutes + took
    score, wrong = evaluate(model, tok, items)
    print(score, *wrong, sep="\n")
    write(args.seed, model, tok, curves, minutes, score, wrong)


if __name__ == "__main__":
    main()

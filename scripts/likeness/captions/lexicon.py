"""The words of the lint, by rule: phrases with their inflections, and phrases that look alike but mean something else.

An entry is a lower-case regular expression over words; a space in it also matches hyphens. What an `ALLOWED` entry
covers is not looked at by the other rules. Python and not YAML, so that a changed word restarts the stage's jobs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

PERSON = (
    "(?:person|people|man|men|woman|women|lady|ladies|gentlem[ae]n|guy|guys|girl|girls|boy|boys|male|males|female|females"
    "|adult|adults|child|children|kid|kids|lad|individual|model|face|features|looking)"
)

FACE = (
    r"eyes?",
    r"\w*eyed",
    r"(?:eye)?brows?",
    r"(?:eye)?lash(?:es)?",
    r"eyelids?",
    r"iris(?:es)?|pupils",
    r"nose[sd]?|nostrils?|nosed",
    r"lips?|lipped",
    r"cheeks?|cheeked|cheekbones?",
    r"jaws?|jawed|jawlines?",
    r"chins?|chinned",
    r"foreheads?",
    r"(?:oval|round(?:ed)?|square|long|narrow|wide|thin|slim|slender|lean|chubby|plump|angular|symmetrical|heart shaped|diamond "
    r"shaped|pretty|soft|chiselled|chiseled|gaunt|full|delicate|kind|pale|weathered|shaped) (?:\w+ )?faces?",
    r"(?:\w+ )?shaped face|(?:oval|round|square|thin|baby|pale) ?faced",
    r"face shapes?|shape of (?:the|his|her|their) face",
    r"facial (?:features?|hair|structure)|bone structure|(?:sharp|soft|delicate|strong|fine|angular"
    r"|striking|distinct|distinctive|chiselled|chiseled|symmetrical|prominent) features",
    r"freckle[sd]?|freckly|dimple[sd]?|wrinkles|(?:crow's feet)|birthmarks?|beauty (?:mark|spot)s?|moles? on|scars?|scarred",
    r"acne|pimples?|blemish(?:es)?",
    r"skins?|skinned|complexions?|tanned",
    r"teeth|tooth|toothy",
)
HAIR = (
    r"hairs?|\w*haired|hairlines?|hairy",
    r"blonde?s?|blondish|brunettes?|redheads?|redheaded",
    r"curls|curly|wavy locks|locks of|dreadlocks|afro|bangs",
    r"bald|balding|baldness|bald headed",
    r"beards?|bearded|moustaches?|mustaches?|moustached|mustached|mustachioed|stubble|stubbly|goatees?|sideburns",
    r"clean shaven|unshaven",
)
AGE = (
    rf"(?:young|younger|old|older|senior|mature|grown) (?:\w+ )?{PERSON}",
    r"elderly|middle aged|aged (?:about |around )?\d+|teens?|teenage[rd]?s?|youth|youthful|toddlers?|infants?|millennial",
    r"(?:\d+|twenty|thirty|forty|fifty|sixty|\w+ty \w+)? ?years? old",
    r"in (?:his|her|their) (?:early |mid |late )?(?:\d0s|teens|twenties|thirties|forties|fifties|sixties|seventies|eighties)",
)
ORIGIN = (
    rf"(?:white|black|brown|dark|light|fair|indian|chinese|japanese|korean|arab|arabic|persian|turkish|european|american|african"
    rf"|nordic|slavic|mediterranean|native|jewish|russian|mexican|brazilian) {PERSON}",
    r"caucasians?|hispanics?|latin[oax]s?|asians?|mixed race|biracial|multiracial|middle eastern|ethnic(?:ity)?|racial(?:ly)?",
    r"of \w+ (?:descent|origin|heritage|ancestry)|nationality",
)
LOOKS = (
    r"beautiful(?:ly)?|beauty|pretty|handsome|attractive|gorgeous|cute|good looking|stunning|lovely|charming|striking (?!a |the )\w+"
    r"|photogenic|sexy|ugly|plain looking|androgynous|feminine|masculine|recogni[sz]able|famous|celebrity",
)
IDENTITY_ALLOWED = (
    r"face (?:masks?|shields?|paint|towels?|cloth|to face)",
    r"(?:face|facing) (?:turned|towards?|to|away|down|up)",
    r"eyes? (?:are )?(?:half )?(?:closed|shut|open|contact|level|mask|glasses|wear|drops|patch)",
    r"(?:closed|shut|half closed) eyes?",
    r"eyes (?:looking|fixed|turned|raised|lowered|cast)",
    r"(?:lip|nose|chin|brow|jaws?|skin|hair|teeth) of (?:the|a|an) (?!man|woman|person|girl|boy|face)\w+",
    r"nose (?:cone|ring)s?",
    r"lip ?sticks?|lip balm",
    r"(?:chin|cheek) (?:resting|rested|propped|leaning|on|in)(?: \w+){0,2} hands?",
    r"hair ?(?:dryers?|brush(?:es)?|clips?|ties?|bands?|pins?|nets?|salon|dresser(?:'s)?|cut)",
    r"hair (?:is )?(?:tied|pulled|pinned|swept|worn|put|gathered) (?:back|up|down|away)",
    r"(?:wind|flowers?|ribbon|clip) in (?:the|his|her|their) hair",
    r"curly (?:cables?|fries|kale)",
    r"(?:animal|snake|sheep|leather|fur|bear|tiger|fake) skins?|skin tight",
    r"wrinkles in (?:the )?(?:fabric|shirt|cloth|sheets?)",
    r"iris(?:es)? (?:flowers?|in)|bald eagles?|asian (?:food|restaurant|market|garden)s?",
    r"(?:black|white|brown|dark|light) model (?:car|train|plane|ship)s?",
    r"beauty (?:salon|shop|parlou?r)s?|tanned leather|skin ?care|tooth ?(?:brush(?:es)?|paste|pick)s?|full face helmet",
    r"brushing (?:\w+ )?(?:teeth|hair)|clock faces?",
)

HOW_MANNER = (
    r"styles?|styled|stylis(?:ed|tic)|styli[sz]ed|stylistically|in the (?:style|manner) of|aesthetics?|inspired by|reminiscent of",
    r"artistic(?:ally)?|artwork|art ?style|artsy|abstract|surreal(?:ist|istic)?|impressionis(?:t|m|tic)|expressionis(?:t|m|tic)"
    r"|cubis[tm]|minimalis(?:t|m|tic)|baroque|gothic|art (?:deco|nouveau)|pop art|retro|vintage|futuristic|steampunk"
    r"|cyberpunk|vaporwave|fantasy|hyper ?realis(?:m|tic)|photo ?realis(?:m|tic)|realistic|realism|whimsical|decorative",
    r"van gogh|monet|picasso|ghibli|miyazaki|disney|pixar|rembrandt|klimt|hokusai|mucha|rockwell|warhol|banksy|dal[ií]"
    r"|rutkowski|wes anderson|caravaggio|vermeer|matisse|hopper",
)
HOW_MEDIUM = (
    r"paintings?|painted|painterly|watercolou?rs?|oil on canvas|gouache|acrylics?|aquarelle|pastels?|charcoal|ink wash|crayons?",
    r"illustrations?|illustrat(?:ed|ive)|drawings?|drawn|sketch(?:es|ed|y)?|doodles?|cartoons?|cartoonish|animes?|manga|comics?"
    r"|comic book|storybook|graphic novel",
    r"renders?|rendered|renderings?|3d|cgi|digital (?:art|painting)|pixel art|pixelated|vectors?|line ?art|engravings?"
    r"|woodcuts?|etchings?|lithographs?|linocuts?|collages?|claymation|low poly",
    r"brush ?(?:strokes?|work)|strokes|textured|textures?|impasto|ink wash(?:es)?|linework|outlines?|outlined|hatching|cross hatching",
    r"photographs?|photos?|photography|photographic|snapshots?|polaroids?|analog(?:ue)?|film (?:stills?|grain|look)|grain|grainy",
)
HOW_MOOD = (
    r"mood|moods|moody|moodily|moodier|atmosphere|atmospheric|dramatic(?:ally)?|dreamy|dreamlike|ethereal|mystical|magical"
    r"|nostalgic|melanchol(?:y|ic)|eerie|ominous|gloomy|serene|serenity|tranquil|peaceful|calming|cozy|cosy|romantic|epic"
    r"|majestic|evocative|haunting|mysterious|tense|vibe|vibes|ambiance|ambience|feeling",
    r"beautiful(?:ly)?|stunning|gorgeous|elegant(?:ly)?|striking|breathtaking|exquisite|masterpiece|intricate(?:ly)?|detailed",
)
HOW_CAMERA = (
    r"cinematic(?:ally)?|editorial|bokeh|depth of field|shallow focus|soft focus|sharp focus|out of focus|blurred|blurry|blur"
    r"|lens|lens flare|vignett(?:e|ing)|hdr|[48]k|high resolution|macro|wide angle|fish ?eye|telephoto|tilt shift|long exposure"
    r"|over ?exposed|under ?exposed|exposure|close ?ups?|high angle|low angle|composition|composed|perspective|foreshortened",
    r"black and white|monochrom(?:e|atic)|sepia|gr[ae]yscale|duotone",
)
HOW_COLOUR = (
    r"vibrant(?:ly)?|vibrancy|vivid(?:ly)?|colou?rful(?:ly)?|muted|(?:de)?saturated|saturation|contrast|contrasting|palettes?"
    r"|tones?|toned|tonal|hues?|hued|shades of|tints?|tinted|gradients?|colou?r (?:grading|scheme|graded)|earthy|neon colou?rs"
    r"|(?:bright|bold|soft|warm|cool|rich|dark|light|pale) colou?r(?:s|ed)?",
)
HOW_LIGHT = (
    r"lighting|lit|backlit|sunlit|moonlit|candlelit|illuminat(?:ed|ing|ion|es)|glow(?:s|ing)?|shadows?|shadowy|shaded|shading"
    r"|highlights?|chiaroscuro|silhouettes?|silhouetted|golden hour|blue hour|god rays|sunbeams?|dappled|luminous|radiant",
    r"(?:soft|warm|cool|cold|harsh|hard|natural|ambient|dim|bright|diffused?|even|golden|rim|studio|low|pale|gentle|morning"
    r"|evening|sun|moon|day|candle) ?light",
    r"light from (?:the )?(?:left|right|side|above|behind|below|window)",
)
STYLE_ALLOWED = (
    r"(?:painting|drawing|sketching|photographing|taking (?:a )?(?:photo|photograph|picture)s?(?: of)?)"
    r" (?:a|an|the|on|at|with|in)(?= )",
    r"(?:framed|hanging) (?:paintings?|photos?|photographs?|drawings?)|(?:paintings?|photos?|photographs?|drawings?) on (?:the|a) wall",
    r"(?:traffic|street|head|flash|stage|string|pilot) ?lights?|light ?(?:house|bulb)s?",
    r"(?:vintage|retro) (?:car|bicycle|camera|typewriter|radio|truck)s?",
    r"(?:camera|contact|magnifying) lens(?:es)?|comic books?|color(?:ing)? books?|hair ?style[sd]?",
    r"(?:field|sack|bag|pile|ear)s? of grain|grain (?:silo|field|elevator)s?|horse drawn|reading (?:a )?comics?",
    r"painted (?:wall|fence|door|house|sign|egg|nail)s?|(?:curtains )?drawn curtains|curtains drawn",
    r"gothic (?:cathedral|church|arch(?:es)?|window)s?|baroque (?:church|palace|facade)s?|lit (?:candle|cigarette|lamp|lantern|fire)s?",
)

PREAMBLE = (
    r"(?:the|this|that) (?:\w+ )?(?:image|photo|photograph|picture|portrait|scene|illustration|shot|frame) (?:shows?|depicts?|"
    r"features?|captures?|presents?|displays?|portrays?|is|has|contains?)",
    r"in (?:the|this) (?:image|photo|photograph|picture)|(?:an?|the) (?:\w+ )?(?:image|photo|photograph|picture|snapshot|selfie) of",
    r"the (?:first|second|last|before|after|source|target|edited|original) (?:image|picture|photo)s? (?:shows?|depicts?|is|has)",
    r"it appears|appears to|seems to|it looks like|possibly|probably|we (?:can )?see|you can see|there (?:is|are) visible",
    r"here(?: is|'s| are)|sure|certainly|of course|as requested|caption|json|i (?:see|think|would)|let me|note that|okay",
)
REFUSAL_WORDS = (
    r"i (?:can't|cannot|can not|won't|will not|could not|couldn't|am not|do not|don't|am unable)|i'm (?:not|unable|sorry|afraid)",
    r"sorry|apologi[sz]e|unable to|not able to|as an ai|language model|can't (?:help|assist|identify|describe|comply)|(?:cannot|can"
    r" not) (?:help|assist|identify|describe|comply|determine|fulfil+)|not comfortable|against (?:my|the) (?:guidelines|policy)"
    r"|no image (?:was )?(?:provided|attached)|content policy|inappropriate",
)

EDIT_VERBS = frozenset(
    word
    for line in (
        "add adjust age apply blend blur brighten bring change clean close color colorize colour convert copy",
        "cover crop cut darken delete dress drop dye enlarge erase exchange extend fill fix flip fold give hide",
        "insert keep lengthen let lift light lower make mirror move narrow open paint paste place pose put raise",
        "recolor recolour reduce relight remove rename render repaint repair replace reposition resize restore",
        "restyle retouch reverse rotate set sharpen shift shorten show shrink smooth soften start straighten style",
        "swap take thicken thin tilt transfer transform trim turn twist undo unify use vary wear whiten widen wrap",
        "zoom",
    )
    for word in line.split()
)

FRAMING_TERMS = {
    "close": (
        r"close portraits?|close ?ups?|close up|head ?shots?|head and shoulders|tight portrait|face fills the frame",
    ),
    "half": (
        r"half body|half length|waist up|chest up|from the waist|upper body|medium shot|mid shot|torso shot|bust shot",
    ),
    "full": (r"full body|full length|full figure|head to toe|whole body|entire body|wide shot|long shot|full shot",),
}
FRAMING_ALLOWED = (r"(?:full|half|knee) length (?:mirror|dress|coat|gown|skirt|robe|curtain)s?",)

IDENTITY_RULES = {"face": FACE, "hair": HAIR, "age": AGE, "origin": ORIGIN, "looks": LOOKS}
STYLE_RULES = {
    "manner": HOW_MANNER,
    "medium": HOW_MEDIUM,
    "mood": HOW_MOOD,
    "camera": HOW_CAMERA,
    "colour": HOW_COLOUR,
    "light": HOW_LIGHT,
}
GENERAL_RULES = {"preamble": PREAMBLE, "refusal": REFUSAL_WORDS}
RULES = {"character": IDENTITY_RULES, "style": STYLE_RULES, "edit": {}}
ALLOWED = {"character": (*IDENTITY_ALLOWED, *FRAMING_ALLOWED), "style": STYLE_ALLOWED, "edit": ()}


def compiled(entries: Iterable[str]) -> re.Pattern[str]:
    """One pattern for many entries: whole words only, hyphens count as spaces, capitals as small letters."""
    joined = "|".join(f"(?:{entry})" for entry in entries) or r"(?!)"
    return re.compile(rf"(?<![\w])(?:{spaced(joined)})(?![\w])", re.IGNORECASE)


def spaced(entry: str) -> str:
    """Let each space of an entry match any run of spaces and hyphens, and ` ?` none as well."""
    return entry.replace(" ?", r"[\s-]*").replace(" ", r"[\s-]+")


@cache
def pattern_of(entries: tuple[str, ...]) -> re.Pattern[str]:
    return compiled(entries)


def phrase(text: str) -> str:
    """An entry that matches a user's own word or phrase literally."""
    return " ".join(re.escape(word) for word in text.lower().replace("-", " ").split())


REFUSALS = compiled(REFUSAL_WORDS)

"""What looks private in free text: ids, dates, names, numbers to call, hosts, paths, tokens.

Patterns are suspicions. Whoever publishes sees what was found and decides (`--allow TEXT`); a form that is nearly
always harmless ("patient 100 of 200") is let through here. Tokens of services are those that detect-secrets knows,
found by their form alone: nothing is looked up, and nothing leaves the machine.
"""

__all__ = ["bare_dates", "CLINICAL", "CONTACTS", "DATES", "Finder", "FINDERS", "looks_private", "PATHS", "SECRETS"]

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

_I = re.IGNORECASE

# -- ids ---------------------------------------------------------------------------------------------------------------

_NOT_COUNTED = (  # what follows a number that counts something, or that a book has
    r"(?!\d)(?!\s*(?:of|out of|von|x|×)\s*\d)(?!\s*/\s*(?!(?:19\d\d|20(?!00)\d\d)\b)\d{3,})(?![.,]\d)(?!\s*%)"
    r"(?![^\S\n]+(?:images|patients|cases|rows|latents|mm|px|pixels|epochs|steps|years|women|views|studies|"
    r"exams|examinations|mammograms|breasts|scans|boxes|findings|samples|tokens|positions|pairs|lesions|participants|subjects|controls|pixel|by|"
    r"resampl(?:es|ings)|bootstraps?|replicat(?:es|ions)|iterations|permutations|simulations|folds|neurons|channels|people|persons|volunteers|files|bins)\b)"
)
_NOT_OF_A_BOOK = (
    r"(?![^\S\n]+(?:of|in|from)\s+(?:the|an?|this|that|our|its)?\s*[\w'-]*\s?"
    r"(?:atlas|book|textbook|paper|article|figure|table|list|tutorial|teaching|supplement|appendix|lexicon)\b)"
)
_NOT_OF_A_NETWORK = (  # latents have ids too
    r"(?![^\S\n]+(?:of|in|from)\s+(?:the|an?|this|that|our|its)?\s*[\w'-]*\s?"
    r"(?:saes?|dictionary|codebook|latents?|features?|neurons?|layer|network|model|vocabulary)\b)"
)
_NOT_AN_ORCID = r"(?!000\d([ -])\d{4}\1\d{4}\1\d{3}[\dX](?![\w-]))"
_BY_AN_AUTHOR = (  # what a person is named as the author of
    r"(?:code|scripts?|software|package|library|repo(?:sitory)?|release|checkpoints?|weights|models?|SAEs?|autoencoders?"
    r"|networks?|papers?|article|preprint|thesis|method|algorithm|implementation|notebooks?)\b(?!\s*[:#]?\s*\d)"
)
_NUMBER = rf"(?<![\d.])\d{{3,}}{_NOT_COUNTED}{_NOT_OF_A_BOOK}"
_NOT_A_YEAR = r"(?!(?:19|20)\d\d\b)"
_NOT_A_SIZE = r"(?!(?:1024|1280|1520|1536|2048|2304|2560|2944|3072|3328|3518|4096)\b)"  # of an image's sides
_UPPER = f"[{''.join(chr(code) for code in range(0x530) if chr(code).isalpha() and not chr(code).islower())}]"
_LOOKS_LATIN = "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυχ"  # Greek letters

CLINICAL: Mapping[str, re.Pattern[str]] = {
    "a DICOM UID": re.compile(r"(?<![\w.])(?:[0-2]\.\d{1,4}(?:\.\d+){5,}|1\.2\.840(?:\.\d+)+|2\.25\.\d{6,})(?![\w.])"),
    "a DICOM tag": re.compile(
        r"\([0-9A-Fa-f]{4},\s?[0-9A-Fa-f]{4}\)|(?<![0-9A-Fa-f.])00(?:08|10|18|20)(?:00|10)[0-9A-F]{2}(?![0-9A-Fa-f])"),
    "the name of a DICOM attribute": re.compile(
        r"\b(?:Patients?'?s?[ _]?(?:Name|ID|BirthDate|Birth[ _]Date|Age|Sex|Address)|(?:Study|Series|SOP)[ _]?Instance"
        r"[ _]?UID|Accession[ _]?Number|Institution[ _]?Name|Referring[ _]?Physician\w*|Station[ _]?Name|Device"
        r"[ _]?Serial[ _]?Number|Operators'?[ _]?Name|Study[ _]?Date|Requesting[ _]?Physician)\b"
    ),
    "a person's name": re.compile(
        r"(?<![\w$\\{])[^\W\d_](?:[^\W\d_]|['’-])+\^(?:[A-Z]|[^\W\d_]{2})"  # in DICOM's form
        rf"|(?<!code of )(?<!code by )(?<!paper of )(?<!paper by )\b(?:Mr|Mrs|Ms|Mister|"
        r"Miss(?!\s+(?:Rate|Ratio|Distance|Probability)s?\b)|Frau|Herrn?|Mme|Mlle|Madame|Monsieur"
        rf"|Sr(?=\.)|Sra|Señora?|Señorita|Senhora?|Signora?)\b\.?\s+"
        rf"(?!{_UPPER}[\w.-]*(?:\s+{_UPPER}[\w-]+){{0,2}}['’]s?\s+"
        rf"(?:(?:released|published|public|open|own|original|new|old|first|earlier)\s+)?{_BY_AN_AUTHOR})"
        rf"{_UPPER}(?:[^\W\d_]+|\.)(?:[^\S\n]+{_UPPER}[^\W\d_]+){{0,2}}"
        rf"|\b(?i:patient(?:e|en|in)?|woman|lady|man|girl)\s+(?i:named|called|genannt|namens|nommée?|llamad[ao])"
        rf"(?:[^\S\n]+{_UPPER}[^\W\d_]+){{1,3}}"
        rf"|\b(?i:patient(?:in)?(?:'?s)?[ _]?name)\s*[:=]\s*{_UPPER}[^\W\d_]+"
    ),
    "a word of letters of two scripts that look alike": re.compile(
        r"(?<!\w)\w*?(?:[A-Za-z][\u0400-\u04ff]|[\u0400-\u04ff][A-Za-z]"
        rf"|[A-Za-z][{_LOOKS_LATIN}][A-Za-z]|\b[ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο][A-Za-z]{{2}})\w*"
    ),
    "the name of a DICOM file": re.compile(r"[\w-]+\.(?:dcm|dicom|ima)\b", _I),
    "an id of a patient, image or study": re.compile(
        r"\b(?:pat(?:ient(?:en|in)?)?\.?|image|study|series|exam|accession|case|mrn|nhs|ssn"
        r"|fall|akten|auftrags|untersuchungs|versicherten|studien|befund"
        r"|hosp(?:ital)?\.?|clinic(?:al)?|chart|ward|admission|encounter"
        r"|(?:medical|health|clinical|patient|hospital) record|krankenhaus|klinik|kranken|aufnahme)[ _-]?"
        rf"(?:ids?|no|nr|number|nummer|uid|#)\.?[\"'`]?\s*[:=#]?\s*[\"'`]?[A-Za-z_-]{{0,12}}"
        rf"(?:\d{{1,4}}[/-](?=\d{{5}}))?{_NUMBER}"
        r"|\b(?:num[eé]ro|número|n[°º])\s+d(?:e |['’])(?:l['’]|la )?"
        rf"(?:h[oô]pital|clinique|cl[ií]nica|patiente?|paciente)\s*:?\s*{_NUMBER}"
        rf"|\b(?:mrn|pid|ssn|nhs|hn|acc(?:ession)?)\b[\"'`.]?\s*[:=#]?\s*[\"'`]?[A-Za-z_-]{{0,12}}{_NUMBER}"
        rf"|\b(?:pts?|pat|patient(?:in)?|subject|proband(?:in)?|participant)\b[.:]?[ _#:=-]{{0,3}}[A-Z]{{0,3}}{_NUMBER}"
        rf"|\b(?:case|fall|exam(?:ination)?)\b[.:]?[ _#:=-]{{1,3}}[A-Z]{{0,3}}{_NOT_A_YEAR}{_NUMBER}"
        rf"|\b(?:study|studie|image|img|bild|scan|mammogram|series)\b[.:]?[ _#:=-]{{1,3}}[A-Z]{{0,3}}"
        rf"{_NOT_A_YEAR}{_NOT_A_SIZE}(?=\d{{4}}){_NUMBER}"
        r"|\b(?:dossier|expediente|historia cl[ií]nica|nhc|ipp)\b[ :#.=]{0,3}(?:(?:n[°ºo]|n[uú]m(?:ero)?)\.?[ :]{0,2})?"
        rf"{_NOT_A_YEAR}{_NUMBER}"
        rf"|\b(?:mrn|pid|ssn|nhs|pts?|pat|patient(?:in)?|case|fall|subject|exam|study){_NOT_A_YEAR}(?=\d{{4}})"
        rf"\d+{_NOT_COUNTED}"
        rf"|\b(?:patient(?:in)?|case|subject)_{_NUMBER}"
        rf"|(?<!latent )(?<!pubmed )(?<!arxiv )(?<!sae )(?<!neuron )(?<!feature )(?<!zenodo )\bID"
        rf"[ :#=]{{1,3}}{_NOT_AN_ORCID}\d{{4,}}{_NOT_COUNTED}{_NOT_OF_A_BOOK}{_NOT_OF_A_NETWORK}", _I),
}  # fmt: skip

# -- dates -------------------------------------------------------------------------------------------------------------

_MONTH = (
    r"(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sep|Sept|Oct|Nov|Dec|January|February|March|April|August|September|October|"
    r"November|December|Januar|Februar|März|Mai|Juni|Juli|Oktober|Dezember|Okt|Dez)\b\.?"
)
_DATE = (
    r"(?<![\w.-])(?:(?:19|20)\d\d[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}[./-]\s?\d{1,2}[./-]\s?(?:19|20)\d\d"
    rf"|\d{{1,2}}(?:\.|st|nd|rd|th)?[ -]{_MONTH}[ ,-]{{0,2}}(?:19|20)\d\d"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? (?:19|20)\d\d)(?:(?=T\d\d:?\d\d)|(?![\dT]|[.-]\d))"
)
_EXAM = (
    r"(?:exam|scan|imag(?:ed|ing)|mammogra|screen|tomosynth|acqui|taken|visit|admi(?:ssion|tted)|biops|surg|operat|seen|"
    r"study date|untersuch|aufnahme|diagnos|follow-?up|prior|x-?ray|radiograph)\w*"
)
_DAY, _MONTH_OF_YEAR = "(?:3[01]|[12]\\d|0?[1-9])", "(?:1[0-2]|0?[1-9])"
_SHORT_YEAR = rf"(?<![\w./-])(?:{_DAY}([./-]){_MONTH_OF_YEAR}\1|{_MONTH_OF_YEAR}/{_DAY}/)\d\d(?![\w/]|[.-]\d)"
_YEAR_FIRST = r"(?<![\w.-])(?:19|20)\d\d\.(?:0[1-9]|1[0-2])\.(?:0[1-9]|[12]\d|3[01])(?!\d|[.-]\d)"
_ON = r"(?:on|of|from|dated|at|vom|am|von|du|le|del?|el)"
DATES: Mapping[str, re.Pattern[str]] = {
    "a date of birth": re.compile(
        r"\b(?:DOB|D\.O\.B\.?|born|birth ?day|birth ?date|date of birth|geb(?:\.|oren)|geburts(?:datum|tag|jahr)"
        r"|jahrgang|birth ?year|year of birth|yob|année de naissance|año de nacimiento|anno di nascita"
        r"|ano de nascimento|geboortejaar|née? (?:le|en)"
        r"|date de naissance|nacid[oa]|fecha de nacimiento|nat[oa] il|data di nascita|nascid[oa]|data de nascimento"
        r"|geboortedatum)\W{0,3}"
        r"(?:(?:on|in|am|the|le|en|el|em)\W{1,2}){0,2}(?:[A-Z][a-zä]{2,8}\W{1,2})?\d"
        rf"|\*\s?{_DATE}|\(\s?(?:\*|b\.)\s?(?:19|20)\d\d\b(?!\*)\)?"
        rf"|(?-i:{_UPPER}[^\W\d_]+),? \*\s?(?:19|20)\d\d(?=[),;.\n](?!\*)|\s*\Z)", _I),
    "a date of an examination": re.compile(
        rf"\b{_EXAM}\b[^.;\n\"|{{}}\[\]]{{0,25}}?(?:{_DATE}|{_YEAR_FIRST}|(?<!\d)(?:19|20)\d\d[01]\d[0-3]\d(?!\d)"
        rf"|\b{_ON}\W{{1,2}}(?:the |den )?{_SHORT_YEAR})"
        rf"|(?:{_DATE}|{_YEAR_FIRST})(?=[^.;\n\w\"|]{{0,3}}(?:the |her |last |first )?{_EXAM})", _I),
    "a date, as of an examination": re.compile(
        r"(?<![\w.=@-])(?<!version )(?=0|..\.0)(?:0[1-9]|[12]\d|3[01])\.(?:0[1-9]|1[0-2])\.\d\d(?!\w|[.-]\d)"),
}  # fmt: skip
_ANY_DATE = re.compile(rf"{_DATE}|(?<![\w.-])(?:19|20)\d\d[01]\d[0-3]\d(?=T\d{{4}}(?:\d\d)?(?![\w:]))", _I)
_IN_A_ZONE = re.compile(r"T[\d:.]+(?:Z\b|[+-]\d\d)", _I)  # as programs write it, and scanners do not
_OF_A_WORK = re.compile(
    r"(?:access|retriev|publish|releas|version|updat|revis|creat|writ|comput|train|ran|run|made|print|since|arxiv|"
    r"conferen|workshop|submi|receiv|accept|licen|commit|tag|deadline|cite|edition|copyright|checked|downloaded)\w*"
    r"\W+(?:\w[\w.]*\W+){0,2}\Z",
    _I,
)

# -- persons, hosts, paths, secrets ------------------------------------------------------------------------------------

CONTACTS: Mapping[str, re.Pattern[str]] = {
    "an e-mail address": re.compile(
        r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"
        r"|(?<![\w.+-])[\w.+-]+\s?[(\[{<]\s?(?:at|@)\s?[)\]}>]\s?[\w-]+"
        r"(?:(?:\.|\s?[(\[{<]\s?(?:dot|punkt|\.)\s?[)\]}>]\s?)"
        r"[\w-]+)+(?<=[a-z]{2})\b"
        r"|(?<![\w.+-])[\w.+-]+ at [\w-]+(?: dot [\w-]+){1,3}\b", _I),
    "a phone number": re.compile(
        r"(?<![\w.+])\+[1-9](?:[ ()/.-]{0,2}\d){7,14}(?![\d.])"
        r"|(?<![\w.+,/-])00[1-9]\d{0,2}[ ()/-]{1,2}\d(?:[ ()/-]{0,2}\d){6,11}(?![\w.])"
        r"|(?<![\w.-])(?:\(\d{3}\) ?|\d{3}-)\d{3}-\d{4}(?![\w-])|(?<![\w.])\d{3}\.\d{3}\.\d{4}(?![\w.])"
        r"|(?<![\w.,/-])0\d{2,4}[ /-]\d{6,8}(?![\w.])|(?<![\w.,/-])\(0\d{1,4}\) ?\d{3,}[\d -]{2,}\d"
        rf"|(?<![\w.,/-])(?<!\b0000 ){_NOT_AN_ORCID}"
        r"(?=(?:\d[ /-]?){9,13}(?!\d))0\d{1,4}[ /-]\d{2,4}(?:[ -]\d{2,5}){1,4}(?![\w.])"
        r"|\b(?:tel(?:efon|ephone)?|phone|fon|mobile|handy|fax|call|ring|extension|ext|durchwahl)\b[.:]{0,2} ?"
        r"(?:(?=(?:\D{0,2}\d){7})[+(]?\d[\d ()/.-]{5,}\d|(?<=ext )\d{3,5}\b|(?<=ext\. )\d{3,5}\b)", _I),
    "an address in a local network": re.compile(
        r"(?<![\w.])(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2}(?![\w.])"
        r"|(?<![\w:.])(?:fe[89ab][0-9a-f]|f[cd][0-9a-f]{2})(?::[0-9a-f]{0,4}){2,7}(?!\w)"  # IPv6
        r"|(?<![\w:-])[0-9a-f]{2}([:-])(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}(?!\w|[:-]\w)", _I),  # of a network card
    "the name of a host": re.compile(
        r"\b[a-z0-9][\w-]*(?:\.[\w-]+)*\.(?:local|lan|internal|intra|intranet|corp|localdomain)\b(?!\()"
        r"|(?<![\w/.-])(?:pacs|ris|orthanc|srv|server|nas|vm|ws|wks|workstation|desktop|laptop)-?(?:[a-z]+-)*\d{1,4}\b"
        r"|(?<![\w/.-])(?:srv|ws|wks|vm|pacs|nas)-[a-z][\w-]*\d\b"
        r"|(?<![\w/.-])(?:(?:desktop|laptop)-(?=[a-z]*\d)[a-z0-9]{7}|win-(?=[a-z]*\d)[a-z0-9]{11})\b"  # by Windows
        r"|(?<![\w/.-])(?:[a-z]{2,}\d{0,2}-){1,3}(?:ws|wks|workstation|pacs|ris|srv|server|nas|pc)-?\d{1,4}\b"
        r"|(?<![\w/.-])(?:gpu|cpu|compute|login|dgx|worker)-?node-?\d{1,4}\b"
        r"|(?<![\w/.-])(?=[a-z-]*\d)[a-z][\w-]*\.(?:cluster|hpc)\b(?!\()"
        r"|\bhttps?://(?!localhost\b)[a-z][a-z0-9_-]*(?::\d+)?(?=[/\s\"'`<>),;]|\Z)"
        r"|(?<![/@\w.-])(?!www\.)(?=[\w.-]*(?:pacs|orthanc|radiolog|klinik|clinic|hospital))[a-z][\w-]*(?:\.[a-z][\w-]*)"
        r"{1,4}\.(?:[a-z]{2}|com|org|net|edu|gov|example|health)\b"
        r"|\b[a-z][\w-]*:(?:104|11112|4242)\b", _I),
}  # fmt: skip

_ROOTS = (
    "home|Users|root|mnt|media|data|datasets?|tmp|var|opt|srv|scratch|workspaces?|work|content|kaggle|Volumes|private|gpfs|"
    "lustre|nfs|net|etc|usr|proc|run|storage|projects?|export|shared?|cluster|raid\\d*|ssd\\d*|hdd\\d*|archive|pacs|dicom"
)
PATHS: Mapping[str, re.Pattern[str]] = {
    "a path of a file": re.compile(
        rf"(?<![\w./#&%-])/(?:{_ROOTS})/[^\s\"'`<>|)\]}},;]"  # under a well-known folder
        r"|\A/(?:[^/\s]+/)+[^/\s]*\Z"  # all of a value
        r"|(?<![\w./:#&%<-])/[\w.-]+/[\w.-]+/[\w.-]+"  # three folders deep
        r"|(?<![\w./:#&%<)\]*-])/[A-Za-z][\w.-]*/[\w.-]*\w"  # a folder and a file
        r"|(?<![\w/])~[\w.-]*/[\w.-]|\$\{?HOME\b|%USERPROFILE%"
    ),
    "a path of a file on Windows": re.compile(
        r"(?<![A-Za-z])[A-Za-z]:(?:\\{1,2}|/(?!/))[\w$. -]|\\\\[\w.?-]+\\{1,2}[\w$]"
        r"|(?<![\w:/\\])//[A-Za-z][\w.-]*/[\w$.-]+"
    ),
    "the address of a file": re.compile(
        r"\bfile:/|(?<![a-z0-9+.-])(?!(?:git\+)?https?:|hub:|hf:)[a-z][a-z0-9+.-]{1,15}://", _I
    ),
}

_TOKENS = re.compile(
    r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bgl[a-z]{2,5}-[\w-]{16,}"
    r"|\bsk-[\w-]{20,}|\bA[KS]IA[0-9A-Z]{16}\b|\bxox[abeprs]-[\w-]{10,}|\bxapp-[\w-]{10,}|\bAIza[\w-]{30,}"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}|\bpypi-[\w-]{20,}|\bya29\.[\w-]{16,}|\bnpm_[A-Za-z0-9]{20,}|\bhvs\.[\w-]{20,}"
    r"|\bGOCSPX-[\w-]{20,}|\bnvapi-[\w-]{20,}|\bdckr_pat_[\w-]{16,}|\bdop_v1_[0-9a-f]{20,}|\btskey-[\w-]{16,}"
    r"|\bdapi[0-9a-f]{32}|\blsv2_[a-z]{2}_\w{16,}|\bwandb_v\d_\w{20,}|\bpplx-[A-Za-z0-9]{20,}|\bxai-[A-Za-z0-9]{20,}"
    r"|\bshp(?:at|ca|pa|ss)_[0-9a-f]{32}|\bdoo_v1_[0-9a-f]{20,}|\bPMAK-[0-9a-f-]{20,}|\bntn_[A-Za-z0-9]{20,}"
    r"|\b[A-Za-z][A-Za-z0-9]{1,9}_(?=[A-Za-z0-9]*[a-z])(?=[A-Za-z0-9]*[A-Z])(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{24,}\b"
)
_PASSWORD = (  # and its name in other languages
    r"pass(?:word|phrase|wd|code)|pwd|secret|(?:api|access|secret|private|account|auth)[_-]?key|passwort|kennwort|"
    r"mot de passe|contraseña|contrasena|senha|wachtwoord|lösenord|hasło|пароль"
)
_NAMED = r"(?<![A-Za-z0-9])(?:[A-Za-z0-9]{1,20}[_-]){0,3}"
SECRETS: Mapping[str, re.Pattern[str]] = {
    "a token of a service": _TOKENS,
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password or token": re.compile(
        r"://[^\s/:@]+:[^\s/@]+@|\b(?:Bearer|Basic)\s+[A-Za-z0-9._+/=-]{16,}"
        rf"|{_NAMED}(?:{_PASSWORD})[\"']?\s*[:=]\s*[\"']?[^\s\"',}}]{{5,}}[^\s\"',;}}]"
        rf"|{_NAMED}(?:{_PASSWORD})\s+(?:is|ist|lautet|est|es|was|war)\s+[\"']?(?=[^\s\"']*\d)[^\s\"',}}]{{5,}}[^\s\"',;}}]"
        rf"|{_NAMED}(?<!cls_)(?<!class_)(?<!pad_)(?<!eos_)(?<!bos_)(?<!unk_)(?<!sep_)(?<!mask_)(?<!patch_)token[\"']?"
        r"\s*(?:=|:(?!\s*[\"']?[A-Z]?[a-z-]+(?![\w+/-])))\s*[\"']?[^\s\"',}]{5,}[^\s\"',;}]",
        _I),
}  # fmt: skip

_DETECTORS = (
    *("aws.AWSKeyDetector", "azure_storage_key.AzureStorageKeyDetector", "basic_auth.BasicAuthDetector"),
    *("discord.DiscordBotTokenDetector", "github_token.GitHubTokenDetector", "gitlab_token.GitLabTokenDetector"),
    *("jwt.JwtTokenDetector", "mailchimp.MailchimpDetector", "npm.NpmDetector", "openai.OpenAIDetector"),
    *("pypi_token.PypiTokenDetector", "sendgrid.SendGridDetector", "slack.SlackDetector"),
    *("square_oauth.SquareOAuthDetector", "stripe.StripeDetector", "telegram_token.TelegramBotTokenDetector"),
    "twilio.TwilioKeyDetector",
)


@cache
def _detectors() -> tuple[Any, ...]:
    """The detectors of detect-secrets that know a service's form; those by entropy see tokens in every digest."""
    from importlib import import_module

    found = []
    for place in _DETECTORS:
        module, _, name = place.rpartition(".")
        found.append(getattr(import_module(f"detect_secrets.plugins.{module}"), name)())
    return tuple(found)


Finder = Callable[[str], Iterator[tuple[str, str]]]
"""From a text to (what it looks like, the part that does)."""


def _by(patterns: Mapping[str, re.Pattern[str]]) -> Finder:
    def find(text: str) -> Iterator[tuple[str, str]]:
        return ((what, _whole(text, found)) for what, pattern in patterns.items() for found in pattern.finditer(text))

    return find


def _whole(text: str, found: re.Match[str]) -> str:
    """What was found, with the rest of its last word: a person decides on whole dates and paths."""
    rest = _REST.match(text, found.end())
    return found[0] + (rest[0].rstrip(".,:!?") if rest else "")


_REST = re.compile(r"""[^\s"'<>`|;)\]}]{0,100}""")


def _secrets(text: str) -> Iterator[tuple[str, str]]:
    yield from _by(SECRETS)(text)
    for line in text.splitlines():
        for detector in _detectors() if len(line) >= 16 else ():
            for found in detector.analyze_string(line):
                yield "a token of a service", "".join(found) if isinstance(found, tuple) else str(found)


def _clinical(text: str) -> Iterator[tuple[str, str]]:
    yield from _by(CLINICAL)(text)
    yield from _by(DATES)(text)


def bare_dates(text: str) -> Iterator[tuple[str, str]]:
    """Dates in what a person wrote that are not said to be a publication's or a program's."""
    for found in _ANY_DATE.finditer(text):
        if _IN_A_ZONE.match(text, found.end()) or _OF_A_WORK.search(text[max(0, found.start() - 60) : found.start()]):
            continue
        whole = _whole(text, found)
        if whole != text.strip():
            yield "a date, as of an examination", whole


FINDERS: Mapping[str, Finder] = {
    "paths": _by(PATHS),
    "clinical": _clinical,
    "secrets": _secrets,
    "contacts": _by(CONTACTS),
}
"""By rule."""


def looks_private(text: str) -> bool:
    """Whether any of the forms occurs."""
    return any(next(find(text), None) is not None for find in FINDERS.values())

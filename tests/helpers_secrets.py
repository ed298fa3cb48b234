"""Texts that look private, each of which needs a person's word before it goes out, and texts that need none."""

import base64
import hashlib
from collections.abc import Sequence

# What nobody listed, planted where people write: each needs a person's word.
SUSPECTS = {
    "clinical": (
        *(
            "Pt. 88213",
            "see pt 88213",
            "case 4711",
            "Case #4711",
            "Fall 4711",
            "subject 1023",
            "exam 4711",
            "ID: 88213",
            "Pt. 88213 image lost",
            "pt 88213\n\ncase of a mass",
        ),
        *("patient A4711", "Patientin 4711", "acc. 4711123", "patient 88213 of our clinic", "Mrs. Miller"),
        *("DOB 1961-03-04", "* 04.03.1961", "geb. 04.03.1961", "exam of 2021-03-04", "mammogram from 12.03.2021"),
        *("examined on 12 March 2021", "screening on 03/04/2021", "scan 20210304", "biopsy March 4, 2021"),
        *("Mr. John Smith", "Mrs Öztürk", "Herrn Meier", "Señora García", "patient named Anna Schmidt"),
        *("Monsieur Élie", "Ms. Šimić", "Mr. J. Smith", "patient name: Anna", "Patientin namens Ayşe"),
        *(
            "née le 12/03/1961",
            "fecha de nacimiento 12/03/1961",
            "04.03.61",
            "mammography on 4.3.21",
            "data di nascita 4.3.61",
        ),
        *("2021.03.04 exam", "scan from 3/24/21", "Aufnahme vom 4.3.21", "date de naissance : 12/03/1961"),
        *("MRN88213", "patient88213", "Fallnummer 4711", "Study 4711", "image 88213", "p\u0430tient 88213", "exam4711"),
        *(
            "Aktennr. 4711",
            "dossier n° 4711",
            "numéro de dossier 4711",
            "series 88213",
            "\u041crs M",
            "p\u03bftient 88213",
        ),
        *("Fall-Nr. 88213/21", "Fall-Nr. 88213/2021", "Fallnummer 21/88213", "pat.-nr 471123/5", "case no. 4711/21"),
        *("hospital number 88213", "hospital no. 88213", "hosp. no. 88213", "clinic number 88213", "chart #88213"),
        *("Krankenhausnummer 88213", "Kliniknummer: 88213", "medical record number 88213", "numéro d'hôpital 88213"),
        *("Geburtstag 4.3.1961", "Geburtsjahr 1961", "birth year 1961", "year of birth: 1961", "Eva (*1961)"),
        *("Eva (b. 1961)", "Jahrgang 1961", "exam 2021-03-04T10:22:01Z", "Frau Öztürk’s CT"),
    ),
    "contacts": (
        *("tel. 4584711", "0351 458 4711", "(0351) 4584711", "617.555.0199", "call 617 555 0199", "020 7946 0958"),
        *("pacs01", "ws-radiology-03", "pacs.klinik.local", "srv-rad-07", "mammo.radiology.hospital.example"),
        *("pacs:11112", "01 23 45 67 89"),
        *(
            "DESKTOP-8H3JK2L",
            "RAD-WS-12",
            "gpu-node-17.cluster",
            "http://orthanc:8042/studies",
            "fe80::1ff:fe23:4567:890a",
        ),
        *("0049 351 4584711", "anna.mueller (at) klinik.de", "anna [at] klinik [dot] de", "anna at klinik dot de"),
        *("https://orthanc/app", "mammo-pc-07", "compute-node-3", "00:1A:2B:3C:4D:5E", "fd12:3456:789a::1"),
    ),
    "paths": (r"\\pacs01\export", "//pacs01/export/x", "smb://pacs/x"),
    "secrets": (
        *("github_pat_" + "11ABCDEFG0" + "a1B2c3D4e5F6g7H8i9J0", "sk-ant-api03-" + "aB3dE6gH9kL2mN5pQ8rS"),
        *(
            "glrt-" + "aB3dE6gH9kL2mN5pQ8rS",
            "r8_" + "aB3dE6gH9kL2mN5pQ8rStUvWx",
            "sk_live_" + "aB3dE6gH9kL2mN5pQ8rStUvW",
        ),
        *(
            "SG." + "aB3dE6gH9kL2mN5pQ8rStU." + "aB3dE6gH9kL2mN5pQ8rStUaB3dE6gH9kL2mN5pQ8rSt",
            "nvapi-" + "aB3dE6gH9kL2" * 2,
        ),
        *(
            "aws_secret_access_key: " + "wJalrXUtnFEMI",
            "WANDB_API_KEY:" + "0123456789ab" * 3,
            "HF_TOKEN: " + "hfaB3dE6gH9k",
        ),
        *("my_password: " + "hunter2hunter", "db_password: " + "hunter2hunter"),
        *("Passwort: " + "Sommer2024", "mot de passe : " + "soleil2024x", "contraseña: " + "verano2024"),
        *("dapi" + "0123456789abcdef" * 2, "lsv2_pt_" + "0123456789abcdef" * 2 + "_0123456789"),
        *("password is " + "Sommer2024", "SECRET_KEY: " + "aB3dE6gH9k", "xai-" + "aB3dE6gH9kL2" * 2),
    ),
}
HARMLESS = (
    *("patient 100 of 200", "image no. 123 of the atlas", "case 123 of the teaching atlas", "case 12 of the textbook"),
    *("BI-RADS 4c, ACR density C", "arXiv 2507.15227v2, doi 10.1038/s41597-023-02100-7", "trained 2026-01-31"),
    *("version of 12 March 2025", "accessed on 2024-05-01", "fall 2021 release", "1 in 8 women; 2,500 steps"),
    *("image 1520 x 912", "https://physionet.org/content/vindr-mammo/1.0.0/", "latent id 13867", "ViT-B/16-384"),
    *("open_clip ViT-B-16-SigLIP-i18n-256", "5 x 10^-3, p = 0.00417, n = 12345", "server 2 and GPU 0; cuda:0"),
    '"title": "a mammography model","created":"2026-11-29","screening": 1',
    *("MIT licence, 2025", "numpy 2024.10.1", "image 462 of 1000", "case 1000 images, exam 2021", "km/h, and/or"),
)

NEAR_MISSES = (  # not in `HARMLESS`, which is planted as one text: one with so many numbers may be an image
    *(
        "token: positions of a ViT",
        "Miss Rate of 5",
        "patch token: learned, cls_token=zeros_like",
        "Ms and Mr are titles",
    ),
    *(
        "image 3, Study 2, BI-RADS 4",
        "versions 1.2.3, v2.0.1 and 3.10.12",
        "images of 2024, study 2024",
        "image 1024, 2048",
    ),
    *("study 4711 women", "image 2294 x 1914", "case-control study 1998", "layer 24.3, ratio 4/3/2", "since May 2024"),
    *("ΔAUROC 0.01, αmax, kΩ, β-VAE, μm", "sklearn.cluster.KMeans", "http://localhost:7860/", "multi-node-2 runs"),
    *("the screening of 4.3 to 5.2 views", "1/2/3 views", "AUC at 0.5 dot product", "ring::new, fe and fd"),
    *("0049 images", "a woman called back", "the dossier of 3", "série 12", "née par 3 vues", "24.4.2 of black"),
    *("ORCID 0000-0002-1825-0097", "ORCID iD: 0000-0002-1694-233X", "ISNI 0000 0001 2103 2683", "neuron ID 13867"),
    *("ID 13867 in the table of latents", "ID 13867 of the SAE", "ID: 13867 in our dictionary", "patient 100/200"),
    *("Patient 1000 resamples", "patient 1000 bootstraps", "case 500 permutations", "Mr. Nakka's code"),
    *(
        "Ms. Öztürk’s released SAEs",
        "the code of Mr. Nakka",
        "the *2021* and *2022 sets*",
        "birth years",
        "case 1204/2000",
    ),
    *(
        "made at 2026-01-31T10:00:00Z",
        "Version 1.0.0 of 2022-03-11",
        "trained 2026-01-31T10:00:00",
        "unit number 512",
        "chart 88213",
    ),
    *("exam2021", "patient level, patients1000", "secret: none", "password: -", "expert at 5 dot-like marks"),
)
ASSIGNED = (  # not in `SUSPECTS`: the name of a link, where these are planted too, holds no equals sign
    *("aws_secret_access_key = " + "wJalrXUtnFEMI", "WANDB_API_KEY=" + "0123456789ab" * 3, "Kennwort=" + "Sommer2024"),
    *("COMET_API_KEY=" + "aB3dE6gH9k", "my_password=" + "hunter2hunter", "HF_TOKEN=" + "hfaB3dE6gH9k"),
)
DATED = (  # not in `SUSPECTS`: dates without a word that says of what are looked for in notes only
    *("CC view, 2021-03-04", "CC view, 2021-03-04T10:22:01", "MLO, 2021-03-04T10:22", "MLO, 20210304T102201"),
)
SECRETS = tuple(text for texts in SUSPECTS.values() for text in texts)


def disguised(ids: Sequence[str]) -> dict[str, str]:
    """Known ids as they are and in disguise, which no word lets out.

    Args:
        ids: some ids of patients or images, with a digit and a separator in them; the first is used in all ways.
    """
    one, *_ = ids
    return {
        "as it is": one,
        "in capitals": one.upper(),
        "with a dash": one.replace("_", "-"),
        "with an en dash": one.replace("_", "–"),
        "with an ellipsis": one.replace("_", "…"),
        "with a dash between spaces": one.replace("_", " — "),
        "with invisible letters": "\u200b".join(one),
        "in base64": base64.b64encode(f"see {one}.".encode()).decode(),
        "in hexadecimal": f"see {one}!".encode().hex(),
        "SHA-256 without a key": hashlib.sha256(one.encode()).hexdigest(),
        "MD5 without a key": hashlib.md5(one.encode()).hexdigest(),
    }

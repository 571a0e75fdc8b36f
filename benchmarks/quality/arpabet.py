"""The CMU dictionary's phonemes in the letters that bart-g2p-us spells with."""

from __future__ import annotations

ARPABET = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W "
    "Y Z ZH"
)
HEARD = "ɑ æ ʌ ɔ W I b ʧ d ð ɛ ɜɹ A f ɡ h ɪ i ʤ k l m n ŋ O Y p ɹ s ʃ t θ ʊ u v w j z ʒ"
IPA = dict(zip(ARPABET.split(), HEARD.split(), strict=True))
STRESS = {"0": "", "1": "ˈ", "2": "ˌ"}


def ipa(phoneme: str) -> str:
    """Of one phoneme, such as `AE1`; stress stands before its vowel."""
    if not phoneme[-1].isdigit():
        return IPA[phoneme]
    vowel, stress = phoneme[:-1], phoneme[-1]
    sound = "ə" if (vowel, stress) == ("AH", "0") else IPA[vowel]
    return STRESS[stress] + ("əɹ" if (vowel, stress) == ("ER", "0") else sound)

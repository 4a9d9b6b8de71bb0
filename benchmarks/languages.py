"""Write the three files of data/languages: ``python benchmarks/languages.py``."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "data/languages"
#: Subjects, predicates and ends of each language; one of each makes a sentence.
PARTS = {
    "french": (
        "Le facteur|Ma soeur|Notre voisin|La petite fille|Le vieux boulanger|Une amie de Lyon|"
        "Le professeur de mon fils|Mon oncle|La pharmacienne|Le garçon du café|Ma collègue|Un touriste|"
        "La directrice|Le jardinier",
        "a perdu ses clés|cherche une chambre calme|achète du pain frais|attend la réponse de la banque|"
        "a réparé le vélo rouge|voudrait changer de train|a oublié son parapluie|"
        "prépare une soupe aux légumes|écrit une longue lettre|vend sa voiture|a trouvé un petit chat|"
        "lit le journal",
        "ce matin|devant la gare|depuis trois jours|dans la rue principale|avant le dîner|au bord de la mer|"
        "pour la première fois|chez le coiffeur",
    ),
    "german": (
        "Der Briefträger|Meine Schwester|Unser Nachbar|Das kleine Mädchen|Der alte Bäcker|"
        "Eine Freundin aus Köln|Der Lehrer meines Sohnes|Mein Onkel|Die Apothekerin|Der Kellner|"
        "Meine Kollegin|Ein Tourist|Die Leiterin|Der Gärtner",
        "hat die Schlüssel verloren|sucht ein ruhiges Zimmer|kauft frisches Brot|"
        "wartet auf die Antwort der Bank|hat das rote Fahrrad repariert|möchte den Zug wechseln|"
        "hat den Regenschirm vergessen|kocht eine Gemüsesuppe|schreibt einen langen Brief|verkauft das Auto|"
        "hat eine kleine Katze gefunden|liest die Zeitung",
        "und ist heute sehr müde|und redet dabei kaum|und freut sich darüber|aber niemand weiß davon|"
        "weil morgen Sonntag ist|obwohl es spät ist|und lacht laut|bevor die Gäste kommen",
    ),
    "spanish": (
        "El cartero|Mi hermana|Nuestro vecino|La niña pequeña|El viejo panadero|Una amiga de Sevilla|"
        "El profesor de mi hijo|Mi tío|La farmacéutica|El camarero|Mi compañera|Un turista|La directora|"
        "El jardinero",
        "ha perdido las llaves|busca una habitación tranquila|compra pan fresco|"
        "espera la respuesta del banco|ha arreglado la bicicleta roja|quiere cambiar de tren|"
        "ha olvidado el paraguas|prepara una sopa de verduras|escribe una carta larga|vende su coche|"
        "ha encontrado un gato pequeño|lee el periódico",
        "esta mañana|delante de la estación|desde hace tres días|en la calle mayor|antes de la cena|"
        "a la orilla del mar|por primera vez|en la peluquería",
    ),
    "italian": (
        "Il postino|Mia sorella|Il nostro vicino|La bambina|Il vecchio fornaio|Un'amica di Torino|"
        "Il maestro di mio figlio|Mio zio|La farmacista|Il cameriere|La mia collega|Un turista|La direttrice|"
        "Il giardiniere",
        "ha perso le chiavi|cerca una camera tranquilla|compra il pane fresco|"
        "aspetta la risposta della banca|ha riparato la bicicletta rossa|vorrebbe cambiare treno|"
        "ha dimenticato l'ombrello|prepara una zuppa di verdure|scrive una lunga lettera|vende la macchina|"
        "ha trovato un gattino|legge il giornale",
        "questa mattina|davanti alla stazione|da tre giorni|nella via principale|prima di cena|"
        "in riva al mare|per la prima volta|dal parrucchiere",
    ),
}
#: Rows of each language, and the subjects that no other file has.
SPLITS = {"train": (105, slice(0, 8)), "val": (26, slice(8, 10)), "test": (55, slice(10, 14))}


def main() -> None:
    """Draw the sentences of each file with a seed of its own, shuffle them and write them."""
    for split, (count, of_split) in SPLITS.items():
        generator = random.Random(f"languages {split}")
        rows = []
        for language, parts in PARTS.items():
            subjects, predicates, ends = (part.split("|") for part in parts)
            sentences = [" ".join(chosen) + "." for chosen in product(subjects[of_split], predicates, ends)]
            rows += [(sentence, language) for sentence in generator.sample(sentences, count)]
        generator.shuffle(rows)
        with (FOLDER / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number, (text, label) in enumerate(rows):
                row = {"id": f"languages-{split}-{number:04}", "text": text, "label": label}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

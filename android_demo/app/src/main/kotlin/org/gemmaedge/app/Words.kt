package org.gemmaedge.app

import android.annotation.SuppressLint
import android.content.Context
import org.gemmaedge.core.screen.Phrase

/** Core says what is to be said; here it gets the words of the user's language. */
@SuppressLint("DiscouragedApi") // by name: tests/android holds core's names against the resources, and R8 keeps them all
fun Context.words(phrase: Phrase): String {
    val id = resources.getIdentifier(phrase.name, "string", packageName)
    return getString(id, *phrase.values.map { spelled(it) }.toTypedArray())
}

/** A phrase, several with commas between them, or a text as it is. */
fun Context.wordsOf(value: Any): String = spelled(value).toString()

private fun Context.spelled(value: Any): Any = when (value) {
    is Phrase -> words(value)
    is List<*> -> value.joinToString { words(it as Phrase) }
    else -> value
}

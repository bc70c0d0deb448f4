package org.gemmaedge.app

import android.content.ContentProvider
import android.content.ContentValues
import android.content.Context
import android.database.Cursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import java.io.File
import java.io.FileNotFoundException
import org.gemmaedge.core.share.OWN_AUTHORITY

/** Where a camera app writes the one photograph that it was asked for. Nobody else gets in: it is not exported. */
class CameraProvider : ContentProvider() {
    override fun onCreate(): Boolean = true

    override fun getType(uri: Uri): String = "image/jpeg"

    override fun openFile(uri: Uri, mode: String): ParcelFileDescriptor {
        if (uri != PHOTO) throw FileNotFoundException("$uri")
        return ParcelFileDescriptor.open(fileIn(context!!), ParcelFileDescriptor.parseMode(mode))
    }

    override fun query(uri: Uri, columns: Array<String>?, where: String?, values: Array<String>?, order: String?): Cursor? = null

    override fun insert(uri: Uri, values: ContentValues?): Uri? = null

    override fun update(uri: Uri, values: ContentValues?, where: String?, arguments: Array<String>?): Int = 0

    override fun delete(uri: Uri, where: String?, arguments: Array<String>?): Int = 0

    companion object {
        val PHOTO: Uri = Uri.parse("content://$OWN_AUTHORITY/photo.jpg")

        fun fileIn(context: Context) = File(context.cacheDir, "photo.jpg")
    }
}
